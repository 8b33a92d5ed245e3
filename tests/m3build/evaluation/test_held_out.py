"""Held-out text: the draw of documents, windows that predict each token once, and query chunks."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.evaluation.held_out import HeldOut, draw
from m3build.evaluation.windows import window_tokens, windows_of
from m3build_formats.errors import MismatchError


def documents(sizes: list[int]) -> list[HeldOut]:
    return [HeldOut(f"d{n}", 3 * size, tuple(range(size))) for n, size in enumerate(sizes)]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.one_of(st.none(), st.integers(1, 25)),
    st.one_of(st.none(), st.integers(2, 200)),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_a_draw_depends_on_the_documents_and_the_seed_not_on_their_order(
    sizes: list[int], number: int | None, tokens: int | None, seed: int
) -> None:
    some = documents(sizes)
    drawn = draw(iter(some), number, tokens, seed)
    shuffled = random.Random(seed).sample(some, len(some))
    assert draw(iter(shuffled), number, tokens, seed) == drawn
    total = sum(len(document.ids) for document in drawn)
    if tokens is not None:
        assert total <= tokens
    if number is not None:
        assert len(drawn) <= number
    # It is the start of the draw without limits, and could not be longer.
    whole = draw(iter(some), len(some), None, seed)
    for one, other in zip(drawn, whole, strict=False):
        assert one.id == other.id
    assert (
        len(drawn) == len(some)
        or (number is not None and len(drawn) == number)
        or (tokens is not None and total == tokens)
    )


def test_another_seed_draws_others() -> None:
    some = documents([5] * 40)
    assert draw(iter(some), 5, None, 0) != draw(iter(some), 5, None, 1)


@given(st.integers(1, 400), st.sampled_from([None, 7]), st.integers(1, 4), st.integers(2, 16))
@settings(max_examples=150, deadline=None)
def test_each_token_is_predicted_once_and_chunks_are_numbered_through(
    size: int, bos: int | None, chunks: int, chunk: int
) -> None:
    document = HeldOut("d", size, tuple(range(100, 100 + size)))
    windows = list(windows_of(document, 3, bos, chunks * chunk, chunk))
    predicted = [token for window in windows for token in window.ids[1:]]
    assert predicted == list(document.ids if bos is not None else document.ids[1:])
    numbers = [window.first_chunk + c for window in windows for c in range(window.chunks)]
    assert numbers == sorted(set(numbers))
    for window in windows:
        assert window.document == 3
        assert len(window.ids) <= chunks * chunk
        assert [token for c in range(window.chunks + 1) for token in window.of_chunk(c)] == list(window.ids)
        assert (window.chunks - 1) * chunk < window.predicted <= window.chunks * chunk


def test_a_window_holds_whole_query_chunks_within_the_models_positions() -> None:
    config = SimpleNamespace(max_position_embeddings=512)
    assert window_tokens(config, 8, 128, 64) == 320
    assert window_tokens(SimpleNamespace(), 8, 128, 64) == 1024
    with pytest.raises(MismatchError, match="does not fit"):
        window_tokens(SimpleNamespace(max_position_embeddings=190), 8, 128, 64)
