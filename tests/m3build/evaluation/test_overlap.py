"""The leak filter against the definition, tried out in full."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.evaluation.overlap import LIMIT, overlap, overlaps


def by_definition(text: list[int], reference: list[int]) -> float:
    """Eq. 6 of the paper by the choice of i_1, and then of each next pair (i, j), in every way."""
    if not reference:
        return 0.0
    span = 2 * len(reference)

    def longest(first: int) -> int:
        @cache
        def after(i: int, j: int) -> int:
            """Most pairs beyond text index i and reference index j, within the span from ``first``."""
            return max(
                (
                    1 + after(k, m)
                    for k in range(i + 1, min(len(text), first + span + 1))
                    for m in range(j + 1, len(reference))
                    if text[k] == reference[m]
                ),
                default=0,
            )

        return max(
            (1 + after(first, j) for j, token in enumerate(reference) if token == text[first]), default=0
        )

    return max((longest(first) for first in range(len(text))), default=0) / len(reference)


tokens = st.integers(0, 4)


@given(st.lists(tokens, max_size=30), st.lists(tokens, max_size=7))
@settings(max_examples=150, deadline=None)
def test_it_is_the_papers_formula(text: list[int], reference: list[int]) -> None:
    assert overlap(text, reference) == by_definition(text, reference)


@given(st.lists(tokens, max_size=30), st.lists(tokens, max_size=7), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_a_limit_is_decided_as_the_formula_decides_it(
    text: list[int], reference: list[int], twelfths: int
) -> None:
    limit = twelfths / 12
    assert overlaps(text, reference, limit) == (by_definition(text, reference) > limit)


@pytest.mark.parametrize("gap", [0, 1, 2, 3])
def test_tokens_count_only_within_twice_the_references_length(gap: int) -> None:
    # Two tokens: i_2 − i_1 may be 4, not 5.
    text = [1, *[9] * (gap + 2), 2]
    assert overlap(text, [1, 2]) == (1.0 if gap <= 1 else 0.5)


def test_exactly_two_thirds_is_not_over_two_thirds() -> None:
    reference = list(range(129))
    assert overlap(reference[:86], reference) == 86 / 129
    assert not overlaps(reference[:86], reference, LIMIT)
    assert overlaps(reference[:87], reference, LIMIT)


def test_a_reference_taken_from_a_long_text_overlaps_wholly_and_changed_words_take_their_share() -> None:
    drawn = random.Random(5)
    text = [drawn.randrange(400) for _ in range(5000)]
    reference = text[3000:3128]
    assert overlap(text, reference) == 1.0
    changed = [1000 + n if n % 4 == 0 else token for n, token in enumerate(reference)]
    assert overlap(text, changed) == 0.75
    assert overlaps(text, changed)
    backwards = reference[::-1]
    assert overlap(text, backwards) < LIMIT
    assert not overlaps(text, backwards)


def test_empty_texts_and_references_overlap_with_nothing() -> None:
    assert overlap([], [1]) == overlap([1], []) == 0.0
    assert not overlaps([1], [], 0.0)
    assert not overlaps([], [1], 0.0)
