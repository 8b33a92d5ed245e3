"""From losses of windows to gains with intervals, and the sentence that says what they mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from m3build.evaluation.conclusion import conclude
from m3build.evaluation.losses import BOS, PLAIN, VARIANTS
from m3build.evaluation.tally import Tally

CHUNK = 4


def tally_of(gain: float, random_gain: float, *, bos: float = 0.1, documents: int = 6) -> dict[str, Any]:
    """Documents of 10 tokens in windows of 7 and 3, every way 2 nats a token but for what is said."""
    tally = Tally([PLAIN, BOS, *VARIANTS, "rank1"], 2)
    for document in range(documents):
        tally.open_document(20)
        for size in (7, 3):
            base = np.full(size, 2.0 + 0.01 * document)
            losses = {name: base.copy() for name in (PLAIN, BOS, *VARIANTS, "rank1")}
            losses[BOS] += bos
            losses["quantized"] -= gain
            losses["exact"] -= 1.25 * gain
            losses["random"] -= random_gain
            losses["rank1"] -= gain / 2
            tally.add(document, CHUNK, losses)
    return {**tally.results(0), "text": {"query": "previous"}}


def test_means_are_per_token_and_gains_are_against_the_better_way_without_memories() -> None:
    results = tally_of(0.2, 0.05)
    assert results["tokens"] == 60
    assert results["loss"]["none"] == pytest.approx(2.025)
    assert results["none"] == {
        "plain": pytest.approx(2.025),
        "reference_bos": pytest.approx(2.125),
        "taken": "plain",
    }
    assert results["gain"]["quantized"]["mean"] == pytest.approx(0.2)
    assert results["gain"]["quantized"]["low"] == pytest.approx(0.2)
    assert results["gain_over_random"]["mean"] == pytest.approx(0.15)
    assert results["gain_kept"] == pytest.approx(0.8)
    assert results["gain"]["none"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    # 60 tokens on 120 characters.
    assert results["bits_per_character"]["none"] == pytest.approx(2.025 / math.log(2) / 2)
    assert results["by_rank"] == [
        {"rank": 1, "gain": {k: pytest.approx(0.1) for k in ("mean", "low", "high")}}
    ]
    better_after_bos = tally_of(0.2, 0.05, bos=-0.3)
    assert better_after_bos["none"]["taken"] == "reference_bos"
    assert better_after_bos["gain"]["quantized"]["mean"] == pytest.approx(-0.1)
    assert better_after_bos["gain_kept"] is None


def test_query_chunks_are_counted_by_their_place_in_the_window() -> None:
    rows = tally_of(0.2, 0.0)["by_chunk"]
    assert [(row["chunk"], row["tokens"]) for row in rows] == [(0, 6 * (4 + 3)), (1, 6 * 3)]
    assert rows[1]["gain"]["quantized"]["mean"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("results", "begins"),
    [
        (tally_of(0.2, 0.05), "The memories save 0.2000"),
        (tally_of(0.2, 0.2), "There is no gain from what was retrieved"),
        (tally_of(0.2, 0.3), "There is no gain from what was retrieved"),
        (tally_of(0.0, 0.0), "There is no gain"),
        (tally_of(-0.1, 0.0), "There is a loss"),
        (tally_of(0.2, 0.05, documents=1), "One document gives no interval"),
    ],
)
def test_the_conclusion_says_plainly_whether_there_is_a_gain(results: dict[str, Any], begins: str) -> None:
    assert conclude(results).startswith(begins)


def test_a_gain_from_queries_that_saw_the_text_is_not_passed_off_as_honest() -> None:
    results = {**tally_of(0.2, 0.05), "text": {"query": "own"}}
    assert "Retrieval saw the text" in conclude(results)
