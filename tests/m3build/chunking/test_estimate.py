"""Forecasts of tokens: near enough on text like any other, and quick to learn."""

from __future__ import annotations

from typing import Any

import pytest

from m3build.chunking.encoder import Encoder
from m3build.chunking.estimate import GRID, Estimator

PROSE = (
    "Each evening the keeper climbed the stairs of the lighthouse, and in the morning he came down again. "
    * 20
)
CODE = "    for index in range(12):\n        total += values[index] * weights[index]\n" * 20
CHINESE = "每天傍晚，看守人爬上灯塔的楼梯；第二天早上，他又走下来。" * 20


@pytest.mark.parametrize("text", [PROSE, CODE, CHINESE], ids=["prose", "code", "Chinese"])
def test_a_forecast_is_within_a_third(byte_level: Any, text: str) -> None:
    encoder = Encoder(byte_level)
    forecast = Estimator(encoder.count).forecast(text)
    assert forecast.tokens(0, len(text)) == pytest.approx(encoder.count([text])[0], rel=1 / 3)


@pytest.mark.parametrize(
    "text", [PROSE, CODE, CHINESE, PROSE + CHINESE], ids=["prose", "code", "Chinese", "both"]
)
def test_a_lesson_makes_the_forecast_right(byte_level: Any, text: str) -> None:
    encoder = Encoder(byte_level)
    forecast = Estimator(encoder.count).forecast(text)
    tokens = encoder.count([text])[0]
    forecast.learn(0, len(text), tokens)
    assert forecast.tokens(0, len(text)) == pytest.approx(tokens, rel=0.05)


@pytest.mark.parametrize("text", [PROSE, CHINESE])
def test_reach_is_the_inverse_of_tokens(byte_level: Any, text: str) -> None:
    forecast = Estimator(Encoder(byte_level).count).forecast(text)
    for start in (0, 3, 100):
        end = forecast.reach(start, 50.0)
        assert forecast.tokens(start, end - GRID) <= 50 <= forecast.tokens(start, end + 2 * GRID)


def test_a_reach_beyond_the_text_is_not_short_of_its_end(byte_level: Any) -> None:
    forecast = Estimator(Encoder(byte_level).count).forecast("short")
    assert forecast.reach(0, 1e9) >= len("short")


def test_weights_depend_on_the_tokenizer_alone(byte_level: Any) -> None:
    first, second = (Estimator(Encoder(byte_level).count).weights for _ in range(2))
    assert first.tolist() == second.tolist()


def test_a_forecast_of_nothing_expects_nothing(byte_level: Any) -> None:
    assert Estimator(Encoder(byte_level).count).forecast("").tokens(0, 0) == 0
