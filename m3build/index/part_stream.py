"""The FAISS file of a part made a block at a time.

FAISS writes an index that it holds whole, while adding to it takes up to three times the vectors. Here it
writes the index without any vector, and codes what follows: the vectors in row order, or list after list. The
bytes are those that FAISS would write (tested), in the layouts of ``part_bytes``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.index.library import load_faiss, one_thread
from m3build.index.nearest import nearest_vectors
from m3build.index.state import IndexState, empty_index

# Lists are collected so many bytes at a time, with a pass over the vectors each; more of a large part, or the
# passes would take longer than all else.
COLLECTED_BYTES = 1 << 20
MOST_PASSES = 32
# Where the number of vectors stands: after the type and the dimensions.
_VECTORS_AT = 8
_COUNT = struct.Struct("<Q")
# What an index ends with as long as it has no vector: no code, or no list that is not empty.
_NO_LISTS = b"sprs" + _COUNT.pack(0)

Codes = npt.NDArray[np.uint8]
Blocks = Callable[[], Iterable[npt.NDArray[np.float16]]]
"""The vectors of a part, float16 (any, dim) each, as often as asked."""


def can_stream(state: IndexState) -> bool:
    """Whether the parts of this index are vectors coded one by one."""
    return state.spec.storage in ("Flat", "SQfp16", "SQ8")


def stream_part(state: IndexState, blocks: Blocks, rows: int, write: Callable[[bytes], object]) -> None:
    """Write the FAISS file of ``rows`` vectors. Raises ValueError if there are more or fewer."""
    faiss = load_faiss()

    # Without centroids, which all parts share, and with FAISS's default number of lists to probe: how many is
    # the state's to say.
    bare = replace(state, centroids=state.centroids[:0], probes=1)
    empty = bytearray(faiss.serialize_index(empty_index(bare)).tobytes())
    _COUNT.pack_into(empty, _VECTORS_AT, rows)
    coder = empty_index(replace(state, spec=replace(state.spec, lists=0)))
    with one_thread():
        if state.spec.lists:
            write(_without(empty, _NO_LISTS))
            _write_lists(state, blocks, rows, coder, write)
        else:
            # FAISS counts floats where it stores floats.
            size = rows * (state.dim if state.spec.storage == "Flat" else coder.sa_code_size())
            write(_without(empty, _COUNT.pack(0)) + _COUNT.pack(size))
            written = 0
            for block in blocks():
                write(_codes(coder, block).tobytes())
                written += len(block)
            _refuse_other_count(rows, written)


def _without(data: bytearray, end: bytes) -> bytes:
    if not data.endswith(end):
        raise RuntimeError("FAISS writes an index without vectors in another way than this was made for")
    return bytes(data[: -len(end)])


def _refuse_other_count(rows: int, found: int) -> None:
    if found != rows:
        raise ValueError(f"{found} vectors for an index of {rows}")


def _write_lists(
    state: IndexState, blocks: Blocks, rows: int, coder: Any, write: Callable[[bytes], object]
) -> None:
    lists = state.spec.lists
    assigned = _assign(state, blocks, rows)
    sizes = np.bincount(assigned, minlength=lists)
    filled = np.flatnonzero(sizes)
    if len(filled) > lists // 2:
        write(b"full" + _COUNT.pack(lists) + sizes.astype("<u8").tobytes())
    else:
        pairs = np.stack([filled, sizes[filled]], axis=1)
        write(b"sprs" + _COUNT.pack(pairs.size) + pairs.astype("<u8").tobytes())
    order = np.argsort(assigned, kind="stable")
    place = np.empty(rows, np.int32)
    place[order] = np.arange(rows, dtype=np.int32)
    ends = np.cumsum(sizes)
    code_bytes = coder.sa_code_size()
    for first, last in _groups(sizes * code_bytes):
        begin, end = int(ends[first] - sizes[first]), int(ends[last - 1])
        codes: Codes = np.empty((end - begin, code_bytes), np.uint8)
        at = 0
        for block in blocks():
            here = place[at : at + len(block)]
            mine = np.flatnonzero((here >= begin) & (here < end))
            if len(mine):
                codes[here[mine] - begin] = _codes(coder, block[mine])
            at += len(block)
        for number in range(first, last):
            high = int(ends[number])
            low = high - int(sizes[number])
            write(codes[low - begin : high - begin].tobytes() + order[low:high].astype("<i8").tobytes())


def _assign(state: IndexState, blocks: Blocks, rows: int) -> npt.NDArray[np.int32]:
    """The list of each vector."""
    nearest = (nearest_vectors(state.centroids, block.astype(np.float32), 1)[1] for block in blocks())
    assigned: npt.NDArray[np.int32] = np.concatenate(
        [np.empty(0, np.int32), *(which[:, 0].astype(np.int32) for which in nearest)]
    )
    _refuse_other_count(rows, len(assigned))
    return assigned


def _groups(sizes: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Neighbouring lists together, no more bytes than are collected at a time unless one has more."""
    most = max(COLLECTED_BYTES, int(sizes.sum()) // MOST_PASSES)
    first = total = 0
    for number, size in enumerate(sizes.tolist()):
        if total and total + size > most:
            yield first, number
            first = number
            total = 0
        total += size
    if total:
        yield first, len(sizes)


def _codes(coder: Any, block: npt.NDArray[np.float16]) -> Codes:
    codes: Codes = coder.sa_encode(block.astype(np.float32))
    return codes
