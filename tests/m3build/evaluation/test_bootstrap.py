"""Intervals of means per token: their coverage, counted on data whose mean is known."""

from __future__ import annotations

import numpy as np
import pytest

from m3build.evaluation.bootstrap import mean_per_token, student_quantile


@pytest.mark.parametrize("documents", [8, 40])
def test_the_interval_holds_the_true_mean_about_nineteen_times_in_twenty(documents: int) -> None:
    generator = np.random.default_rng(1)
    true, trials, held = 0.03, 300, 0
    for _ in range(trials):
        tokens = generator.integers(20, 800, documents)
        # Each document has an effect of its own, and noise that shrinks with its length.
        effect = true + generator.normal(0, 0.1, documents) + generator.normal(0, 1, documents) / tokens**0.5
        interval = mean_per_token((effect * tokens).tolist(), tokens.tolist())
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= true <= interval.high
    # Three standard errors of a count of 300 at 0.95 are 0.038.
    assert 0.905 <= held / trials <= 0.988


def test_documents_weigh_by_their_tokens() -> None:
    assert mean_per_token([10.0, 0.0], [10, 30]).mean == 0.25


def test_a_difference_that_all_documents_share_has_an_interval_without_width() -> None:
    tokens = [10, 200, 30]
    interval = mean_per_token([0.5 * some for some in tokens], tokens)
    assert interval.low == pytest.approx(0.5)
    assert interval.high == pytest.approx(0.5)


def test_the_same_data_give_the_same_interval_and_another_seed_another_one() -> None:
    totals, tokens = [1.0, 2.0, 5.0, -3.0, 0.5], [10, 20, 30, 15, 8]
    first = mean_per_token(totals, tokens)
    assert first == mean_per_token(totals, tokens)
    assert first != mean_per_token(totals, tokens, seed=1)
    assert first.low is not None
    assert first.low < first.mean


def test_one_document_has_a_mean_and_no_interval() -> None:
    assert mean_per_token([3.0, 0.0], [6, 0]).to_json() == {"mean": 0.5, "low": None, "high": None}
    with pytest.raises(ValueError, match="no tokens"):
        mean_per_token([0.0], [0])


def test_students_quantile_is_that_of_the_tables() -> None:
    # Two-sided 95 %: any table of the t distribution.
    for freedom, value in {4: 2.776, 7: 2.365, 10: 2.228, 30: 2.042, 120: 1.980}.items():
        assert student_quantile(0.975, freedom) == pytest.approx(value, abs=0.02)
