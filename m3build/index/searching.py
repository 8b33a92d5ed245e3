"""Searching the parts of an index as if they were one, and measuring what the approximation loses.

Design choices:

- The coarse centroids are compared with a query once, for all parts.
- Parts are searched one after the other and merged as they come, so memory does not grow with their number.
- Equal scores are ordered by part, then row: the same answer on every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m3build.index.library import load_faiss
from m3build.index.nearest import Floats, nearest_vectors
from m3build.index.parts import Part
from m3build.index.state import IndexState, highest
from m3build_formats.errors import CorruptError

NO_ROW = -1
_EXACT_ROWS = 8192
# Scores this close are one score: sums in float32 depend on the order that the matrix product takes.
_TIE = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The nearest vectors of n queries, best first. ``scores``: float32 (n, k); ``parts``, ``rows``: int64
    (n, k); -1 and -inf where there are fewer."""

    scores: Floats
    parts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


class PartedIndex:
    """All parts of a bank's index with what they share. Thread-safe.

    ``parts``: for each part a function that opens it; it is called at each search, so it should remember what
    it opened.
    """

    def __init__(self, state: IndexState, parts: Sequence[Callable[[], Part]]) -> None:
        self._state = state
        self._parts = parts

    def search(self, queries: Floats, k: int) -> Found:
        """The ``k`` nearest vectors of queries, float32 (n, dim), by inner product."""
        faiss = load_faiss()

        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found = _nothing(len(queries))
        if not len(queries) or k < 1:
            return found
        state = self._state
        probed = nearest_vectors(state.centroids, queries, state.probes) if state.spec.lists else None
        for number, opener in enumerate(self._parts):
            part = opener()
            if not part.rows:
                continue
            limit = min(k, part.rows)
            if probed is not None:
                nearness, lists = probed
                scores, rows = part.index.search_preassigned(queries, limit, lists, nearness)
            elif state.spec.storage == "HNSW":
                # A search that keeps fewer than it wants to return finds less.
                effort = faiss.SearchParametersHNSW(efSearch=max(64, 2 * limit))
                scores, rows = part.index.search(queries, limit, params=effort)
            else:
                scores, rows = part.index.search(queries, limit)
            if bool(((rows < NO_ROW) | (rows >= part.rows)).any()):
                raise CorruptError(
                    f"index: part {number} names rows that its shard does not have; compile the bank anew"
                )
            if not bool(np.isfinite(scores[rows != NO_ROW]).all()):
                raise CorruptError(
                    f"index: part {number} holds vectors that are not finite; compile the bank anew"
                )
            found = _merge(found, _of_part(scores, rows, number), k)
            # Or two would be in memory while the next one is opened.
            del part
        return found


def exact_search(parts: Iterable[Iterable[npt.NDArray[np.float16]]], queries: Floats, k: int) -> Found:
    """The ``k`` nearest of all stored embeddings: parts in order, each as arrays float16 (any, dim). Reads
    everything, needs no index."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    found = _nothing(len(queries))
    for number, start, block in _blocks(parts):
        scores = queries @ block.T
        rows = np.broadcast_to(np.arange(start, start + scores.shape[1], dtype=np.int64), scores.shape)
        found = _merge(found, _of_part(scores, rows, number), k)
    return found


def measure_recall(
    index: PartedIndex, parts: Iterable[Iterable[npt.NDArray[np.float16]]], queries: Floats, k: int = 10
) -> float:
    """The share of the true ``k`` nearest that the index finds, over all queries; 1.0 where there is nothing
    to find.

    ``parts``: the stored embeddings as for ``exact_search``. A row counts as found when it is among the true
    ones or ties with the last of them.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    approximate = index.search(queries, k)
    scores_of_found = np.full(approximate.rows.shape, -np.inf, dtype=np.float32)
    # Of the true ones only the scores matter, and without their places there is nothing to sort.
    true = np.zeros((len(queries), 0), dtype=np.float32)
    for number, start, block in _blocks(parts):
        # By FAISS, whose buffers are there since the parts were searched: those of NumPy's matrix product
        # would be 8 MiB beside a part.
        scores, rows = nearest_vectors(block, queries, min(k, len(block)))
        true = highest(np.concatenate([true, scores], axis=1), k)
        here = (approximate.parts == number) & (approximate.rows >= start)
        query, place = np.nonzero(here & (approximate.rows < start + len(block)))
        row = approximate.rows[query, place] - start
        same = rows[query] == row[:, None]
        # A row that is among the nearest has the score it has there, to the last bit.
        own = np.take_along_axis(scores[query], same.argmax(axis=1)[:, None], axis=1)[:, 0]
        other = np.flatnonzero(~same.any(axis=1))
        own[other] = np.einsum("ij,ij->i", queries[query[other]], block[row[other]])
        scores_of_found[query, place] = own
    if not true.size:
        return 1.0
    worst = true.min(axis=1, keepdims=True)
    return float((scores_of_found >= worst - _TIE * np.abs(worst)).sum() / true.size)


def _blocks(parts: Iterable[Iterable[npt.NDArray[np.float16]]]) -> Iterator[tuple[int, int, Floats]]:
    """Part, first row and vectors, float32 (rows, dim), of every block of stored embeddings."""
    for number, arrays in enumerate(parts):
        start = 0
        for array in arrays:
            for first in range(0, len(array), _EXACT_ROWS):
                block = array[first : first + _EXACT_ROWS].astype(np.float32)
                if not bool(np.isfinite(block).all()):
                    raise CorruptError(f"embeddings of shard {number}: hold values that are not finite")
                yield number, start, block
                start += len(block)


def _nothing(queries: int) -> Found:
    empty = np.zeros((queries, 0), dtype=np.int64)
    return Found(np.zeros((queries, 0), dtype=np.float32), empty, empty)


def _of_part(scores: Floats, rows: npt.NDArray[np.int64], part: int) -> Found:
    missing = rows == NO_ROW
    return Found(
        np.where(missing, np.float32(-np.inf), scores).astype(np.float32),
        np.where(missing, NO_ROW, part).astype(np.int64),
        rows.astype(np.int64),
    )


def _merge(one: Found, other: Found, k: int) -> Found:
    """The best ``k`` of two results, in order of falling score, then part, then row."""
    scores = np.concatenate([one.scores, other.scores], axis=1)
    parts = np.concatenate([one.parts, other.parts], axis=1)
    rows = np.concatenate([one.rows, other.rows], axis=1)
    order = np.lexsort((rows, parts, -scores), axis=1)[:, :k]
    return Found(
        np.take_along_axis(scores, order, 1),
        np.take_along_axis(parts, order, 1),
        np.take_along_axis(rows, order, 1),
    )
