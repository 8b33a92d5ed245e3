"""What the bytes of a part must be before FAISS sees them.

Design choices:

- FAISS's reader follows a file wherever it leads: to index types nested in others, to inverted lists in a
  file that the index names, to vectors that are fewer than it says. So the file of a part is walked here
  first, field by field, and only the one layout passes that the state calls for; FAISS then reads what was
  checked.
- All numbers that steer FAISS are compared with the state. What it does not use (two numbers of the header,
  the lists to probe, the efforts of HNSW) may be anything.
- A graph may be any, as long as every step in it stays inside: FAISS does not look at the levels of
  neighbours.
- The layouts are those of FAISS's index_write.cpp for these types; they are older than 1.7 and do not change,
  since a new layout gets a new name there.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.index.spec import PQ_BITS
from m3build.index.state import IndexState
from m3build_formats.errors import CorruptError

_INNER_PRODUCT = 0
# ScalarQuantizer::QuantizerType
_QUANTIZER_TYPES = {"SQ8": 0, "SQfp16": 4}
_HEADER = struct.Struct("<4siqqq?i")
_SCALAR = struct.Struct("<iifQQ")


def check_part_bytes(state: IndexState, data: npt.NDArray[np.uint8], rows: int) -> None:
    """Raises CorruptError unless ``data`` is laid out as the FAISS file of a part of ``rows`` vectors is."""
    walk = _Walk(state, data, rows)
    if state.spec.storage == "HNSW":
        walk.graph()
    elif state.spec.lists:
        walk.inverted_lists()
    elif state.spec.storage == "Flat":
        walk.flat(rows)
    else:
        walk.header(b"IxSQ", rows)
        walk.scalar_quantizer()
        walk.items(rows * _code_size(state), np.uint8, "codes")
    if walk.at != len(data):
        raise walk.wrong(f"the file has {len(data)} bytes, but what it holds takes {walk.at}")


class _Walk:
    """A place in the bytes; each method steps over one thing or raises CorruptError."""

    def __init__(self, state: IndexState, data: npt.NDArray[np.uint8], rows: int) -> None:
        self.at = 0
        self._state = state
        self._data = data
        self._rows = rows

    def wrong(self, found: str) -> CorruptError:
        """The error for what was found."""
        state = self._state
        return CorruptError(
            f"index: {found}; expected {state.spec} of {self._rows} vectors with {state.dim} dimensions"
        )

    def header(self, fourcc: bytes, rows: int) -> None:
        """Type, dimensions, vectors, two numbers without use, whether it is trained, metric."""
        found, dim, vectors, _, _, trained, metric = self._numbers(_HEADER, "header")
        if found != fourcc:
            raise self.wrong(f"the file holds the type {found!r}, not {fourcc!r}")
        if (dim, vectors, metric) != (self._state.dim, rows, _INNER_PRODUCT) or not trained:
            untrained = "" if trained else ", not trained"
            raise self.wrong(f"metric {metric}, {dim} dimensions, {vectors} vectors{untrained}")

    def flat(self, rows: int) -> None:
        """An exact index of so many vectors."""
        self.header(b"IxFI", rows)
        self.items(rows * self._state.dim, np.float32, "vectors")

    def scalar_quantizer(self) -> None:
        """Type, two parameters of its training, dimensions, code size, trained values."""
        state = self._state
        expected = (_QUANTIZER_TYPES[state.spec.storage], state.dim, _code_size(state))
        kind, _, _, dim, size = self._numbers(_SCALAR, "scalar quantizer")
        if (kind, dim, size) != expected:
            raise self.wrong(f"a scalar quantizer of type {kind}, {dim} dimensions and {size} bytes")
        self._tables("scalar quantizer")

    def inverted_lists(self) -> None:
        """Lists of vectors themselves, an empty quantizer before them and no map from rows to places."""
        state, spec, size = self._state, self._state.spec, _code_size(self._state)
        self.header({"Flat": b"IwFl", "PQ": b"IwPQ"}.get(spec.storage, b"IwSq"), self._rows)
        self._expect("<Q", spec.lists, "lists")
        self._numbers(struct.Struct("<Q"), "probes")
        self.flat(0)
        self._expect("<B", 0, "as kind of its map")
        self.items(0, np.int64, "mapped rows")
        if spec.storage == "PQ":
            self._expect("<B", 0, "for residuals")
            self._expect("<Q", size, "bytes of a code")
            for value, words in ((state.dim, "dimensions"), (spec.m, "parts"), (PQ_BITS, "bits")):
                self._expect("<Q", value, f"product quantizer {words}")
            self._tables("product quantizer")
        elif spec.storage != "Flat":
            self.scalar_quantizer()
            self._expect("<Q", size, "bytes of a code")
            self._expect("<B", 0, "for residuals")
        self._stored_lists(size)

    def _stored_lists(self, size: int) -> None:
        lists = self._state.spec.lists
        self._expect("<4s", b"ilar", "as kind of its lists")
        self._expect("<Q", lists, "lists stored")
        self._expect("<Q", size, "bytes of a stored code")
        (kind,) = self._numbers(struct.Struct("<4s"), "sizes of lists")
        if kind == b"full":
            sizes = self.items(lists, np.uint64, "sizes of lists")
        elif kind == b"sprs":
            # Pairs of list and size, as FAISS writes where most lists are empty.
            pairs = self.items(None, np.uint64, "sizes of lists")
            if len(pairs) % 2 or len(pairs) > 2 * lists:
                raise self.wrong(f"{len(pairs)} numbers for sizes of lists")
            numbers, sizes = pairs[::2], pairs[1::2]
            if len(numbers) and (int(numbers[-1]) >= lists or bool((numbers[1:] <= numbers[:-1]).any())):
                raise self.wrong("sizes of lists that it does not have")
        else:
            raise self.wrong(f"{kind!r} for sizes of lists")
        if sum(map(int, sizes)) != self._rows:
            raise self.wrong("lists that do not add up to its vectors")
        self._skip(self._rows * (size + 8), "lists")

    def graph(self) -> None:
        """HNSW: levels of the rows, neighbours by level, where a search begins; then the vectors."""
        self.header(b"IHNf", self._rows)
        self.items(None, np.float64, "level probabilities")
        cumulative = self.items(None, np.int32, "neighbors of levels").astype(np.int64)
        levels = self.items(self._rows, np.int32, "levels").astype(np.int64)
        offsets = self.items(self._rows + 1, np.uint64, "offsets")
        neighbors = self.items(None, np.int32, "neighbors")
        entry, top, _, _, _ = self._numbers(struct.Struct("<iiiii"), "entry point")
        problem = _graph_problem(self._state.spec.m, cumulative, levels, offsets, neighbors, entry, top)
        if problem:
            raise self.wrong(f"a graph with {problem}")
        self.flat(self._rows)

    def items(self, count: int | None, dtype: type[np.generic], words: str) -> npt.NDArray[Any]:
        """A vector, which begins with the number of its items: ``count``, or any with None."""
        (found,) = self._numbers(struct.Struct("<Q"), words)
        if count is not None and found != count:
            raise self.wrong(f"{found} {words}, not {count}")
        start = self._skip(found * np.dtype(dtype).itemsize, words)
        return self._data[start : self.at].view(np.dtype(dtype).newbyteorder("<"))

    def _tables(self, words: str) -> None:
        tables = self._state.tables
        if self.items(len(tables), np.float32, f"values of the {words}").tobytes() != tables.tobytes():
            raise self.wrong(f"another {words}'s tables")

    def _expect(self, form: str, value: object, words: str) -> None:
        (found,) = self._numbers(struct.Struct(form), words)
        if found != value:
            raise self.wrong(f"{found!r} {words}, not {value!r}")

    def _numbers(self, form: struct.Struct, words: str) -> tuple[Any, ...]:
        start = self._skip(form.size, words)
        return form.unpack(self._data[start : self.at].tobytes())

    def _skip(self, size: int, words: str) -> int:
        start = self.at
        if size > len(self._data) - start:
            raise self.wrong(f"the file ends within its {words}")
        self.at += size
        return start


def _code_size(state: IndexState) -> int:
    """Bytes of a stored vector."""
    return {"Flat": 4 * state.dim, "SQfp16": 2 * state.dim, "SQ8": state.dim}.get(
        state.spec.storage, state.spec.m
    )


def _graph_problem(
    links: int,
    cumulative: npt.NDArray[np.int64],
    levels: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.uint64],
    neighbors: npt.NDArray[np.int32],
    entry: int,
    top: int,
) -> str:
    """Where a search would step outside; "" if nowhere. ``levels``: on how many levels each row stands;
    ``cumulative``: neighbours that a row has below each level."""
    rows = len(levels)
    # Twice as many links on the lowest level as on the others.
    expected = links * np.arange(1, len(cumulative) + 1)
    expected[:1] = 0
    if not 2 <= len(cumulative) <= 128 or not np.array_equal(cumulative, expected):
        return "other numbers of links"
    if rows and not 1 <= int(levels.min()) <= int(levels.max()) < len(cumulative):
        return "rows on levels that it does not have"
    if not np.array_equal(offsets, np.concatenate([[0], np.cumsum(cumulative[levels])]).astype(np.uint64)):
        return "offsets that do not fit its levels"
    if len(neighbors) != int(offsets[-1]):
        return f"{len(neighbors)} neighbors, not {int(offsets[-1])}"
    if not rows:
        return "" if (entry, top) == (-1, -1) else "an entry point, but no rows"
    if not 0 <= entry < rows or top != int(levels.max()) - 1 or int(levels[entry]) != top + 1:
        return f"row {entry} of level {top} as entry point"
    if int(neighbors.min(initial=-1)) < -1 or int(neighbors.max(initial=-1)) >= rows:
        return "neighbors that are no rows"
    # A neighbor on a level stands on that level itself.
    high = np.flatnonzero(levels > 1)
    for row in high.tolist():
        start, on = int(offsets[row]), int(levels[row])
        block = neighbors[start + int(cumulative[1]) : start + int(cumulative[on])].reshape(on - 1, links)
        if bool(((block >= 0) & (levels[block] <= np.arange(1, on)[:, None])).any()):
            return "neighbors on levels where they do not stand"
    return ""
