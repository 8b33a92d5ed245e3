"""Parts made a block at a time are, to the byte, what FAISS writes of the whole."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from m3build.index import build_part, parts, train, write_part
from m3build.index import part_stream as module
from m3build.index.library import load_faiss
from m3build.index.state import empty_index

DIM = 16
SPECS = ["Flat", "SQfp16", "SQ8", "IVF8,Flat", "IVF8,SQfp16", "IVF8,SQ8", "IVF200,SQfp16"]


def vectors(rows: int, seed: int = 0) -> npt.NDArray[np.float16]:
    found = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float16)
    # Zeros, the smallest numbers there are and those at the end of the range come through as they are.
    found[:4] = np.array([0.0, -0.0, 6e-8, 65504.0], np.float16)[:rows, None]
    return found


@pytest.mark.parametrize("rows", [0, 1, 60, 2500])
@pytest.mark.parametrize("spec", SPECS)
def test_a_part_has_the_bytes_that_faiss_writes(
    spec: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = train(spec, 10_000, vectors(4000, 1))
    embeddings = [vectors(rows)[: rows // 3], vectors(rows)[rows // 3 :]]
    streamed = {}
    monkeypatch.setattr(module, "MOST_PASSES", 1 << 30)
    # One list at a time, some at a time, all at once.
    for size in (1, 4096, 1 << 22):
        monkeypatch.setattr(module, "COLLECTED_BYTES", size)
        streamed[size] = build_part(state, embeddings)
    monkeypatch.setattr(parts, "can_stream", lambda state: False)
    expected = build_part(state, embeddings)
    assert expected.count(b"ilar") == spec.startswith("IVF")
    assert all(found == expected for found in streamed.values())


@pytest.mark.parametrize("spec", ["SQfp16", "IVF16,SQfp16"])
def test_memory_does_not_grow_with_the_vectors_of_a_part(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLLECTED_BYTES", 1 << 14)
    monkeypatch.setattr(module, "MOST_PASSES", 1 << 30)
    state = train(spec, 10_000, vectors(4000, 1))
    # What FAISS holds is not traced: it must be given none of the vectors to keep.
    made: list[Any] = []
    for place in (module, parts):
        monkeypatch.setattr(place, "empty_index", lambda state: made.append(empty_index(state)) or made[-1])
    block = vectors(1000)
    peaks = []
    for blocks in (4, 4, 40):
        tracemalloc.start()
        write_part(state, lambda number=blocks: (block for _ in range(number)), 1000 * blocks, lambda _: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Where each row goes takes a few numbers; a vector is 32 bytes.
    assert peaks[2] - peaks[1] < 36_000 * 2 * DIM, peaks
    assert made
    assert all(index.ntotal == 0 for index in made)


@pytest.mark.parametrize("spec", ["SQfp16", "IVF16,SQfp16"])
@pytest.mark.parametrize("rows", [99, 101])
def test_another_number_of_vectors_than_said_is_refused(spec: str, rows: int) -> None:
    state = train(spec, 10_000, vectors(4000, 1))
    with pytest.raises(ValueError, match=f"100 vectors for an index of {rows}"):
        write_part(state, lambda: [vectors(100)], rows, lambda _: None)
    # More than a block too many.
    with pytest.raises(ValueError, match=f"700 vectors for an index of {rows}"):
        write_part(state, lambda: [vectors(700)], rows, lambda _: None)


def test_an_empty_index_that_faiss_writes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = train("SQfp16", 100, vectors(100))
    monkeypatch.setattr(load_faiss(), "serialize_index", lambda index: np.ones(80, np.uint8))
    with pytest.raises(RuntimeError, match="another way"):
        write_part(state, lambda: [vectors(5)], 5, lambda _: None)
