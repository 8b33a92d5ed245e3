"""Conditions on figures: what is read, what is refused before any work, what fails and how it says so."""

from __future__ import annotations

from typing import Any

import pytest

from m3build.evaluation.gate import FIGURES, Condition, enforce, judge, parse_conditions
from m3build_formats.errors import GateError, UsageError

RESULTS: dict[str, Any] = {
    "gain": {"quantized": {"mean": 0.0175, "low": None, "high": None}},
    "retrieval": {"index": {"hit@5": 0.9}},
}


@pytest.mark.parametrize(
    ("text", "figure", "comparison", "bound"),
    [
        ("loss_gain>=0.02", "loss_gain", ">=", 0.02),
        (" hit@5 > .9 ", "hit@5", ">", 0.9),
        ("reading_cost<=1e-1", "reading_cost", "<=", 0.1),
        ("LOSS<3", "loss", "<", 3.0),
        ("loss_gain_low>-0.5", "loss_gain_low", ">", -0.5),
    ],
)
def test_a_condition_is_a_figure_a_comparison_and_a_number(
    text: str, figure: str, comparison: str, bound: float
) -> None:
    assert parse_conditions([text], ["text", "queries"]) == (Condition(figure, comparison, bound),)


@pytest.mark.parametrize(
    "text", ["", "loss_gain", "loss_gain=0.02", "loss_gain==1", "loss_gain>=x", "0.1<mrr"]
)
def test_what_is_no_condition_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--require"):
        parse_conditions([text], ["text"])


def test_an_unknown_figure_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(UsageError, match="hits@5 is no figure; there are loss_gain,"):
        parse_conditions(["hits@5>1"], ["queries"])


def test_a_figure_that_is_not_measured_this_time_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="measured only with --queries"):
        parse_conditions(["hit@5>=0.9"], ["text"])
    with pytest.raises(UsageError, match="measured only with --text"):
        parse_conditions(["loss_gain>=0.02"], ["queries"])


@pytest.mark.parametrize(
    ("text", "passed"),
    [("hit@5>=0.9", True), ("hit@5>0.9", False), ("hit@5<=0.9", True), ("hit@5<0.9", False)],
)
def test_the_bound_itself_counts_where_the_comparison_says_so(text: str, passed: bool) -> None:
    [outcome] = judge(parse_conditions([text], ["queries"]), RESULTS)
    assert (outcome.value, outcome.passed) == (0.9, passed)


def test_every_failing_figure_is_named_with_its_value_and_ends_with_code_7() -> None:
    conditions = parse_conditions(["loss_gain>=0.02", "hit@5>=0.5", "loss_gain_low>0"], ["text", "queries"])
    with pytest.raises(GateError) as failed:
        enforce(judge(conditions, RESULTS))
    assert failed.value.exit_code == 7
    message = str(failed.value)
    assert "loss_gain is 0.0175, required >=0.02" in message
    assert "loss_gain_low is not known, required >0" in message
    assert "hit@5" not in message
    enforce(judge(conditions[1:2], RESULTS))


def test_figures_have_names_that_conditions_can_spell() -> None:
    for name, figure in FIGURES.items():
        assert parse_conditions([f"{name}>0"], [figure.source]) == (Condition(name, ">", 0.0),)
