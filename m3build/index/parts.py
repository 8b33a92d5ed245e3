"""One part of an index: the FAISS file of one shard, written from embeddings and opened from checked bytes.

Design choices:

- Vectors are assigned to lists in blocks of a fixed number of rows, on one thread: the bytes of a part depend
  on its vectors and the state alone, not on how they were handed over nor on the machine's cores.
- In place of the coarse centroids a part has an empty flat index: any FAISS reads the file, and a thousand
  parts do not hold a thousand copies. Searches get their lists from the shared centroids.
- A part is read in place: FAISS's arrays point into the given buffer, as a rule a memory map, whose bytes the
  caller has checked.
- Before FAISS reads a part, its layout is walked and compared with the state (`part_bytes`), and FAISS's
  deserialization limits are set to what the file can hold at most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.index.library import load_faiss, one_thread
from m3build.index.part_bytes import check_part_bytes
from m3build.index.part_stream import Blocks, can_stream, stream_part
from m3build.index.state import IndexState, empty_index
from m3build_formats.errors import CorruptError

BLOCK_ROWS = 256
WRITE_BYTES = 1 << 20
# FAISS allows a vector a quarter of its byte limit; the slack is for its small tables, which do not grow with
# the file.
_LIMIT_FACTOR = 4
_LIMIT_SLACK = 1 << 16

_limits_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An opened part. ``index`` is the FAISS index, ``rows`` its vectors; ``buffer`` keeps the bytes alive
    that it points into."""

    index: Any
    rows: int
    buffer: npt.NDArray[np.uint8]


def build_part(state: IndexState, embeddings: Iterable[npt.NDArray[np.float16]]) -> bytes:
    """The bytes that ``write_part`` writes."""
    written: list[bytes] = []
    arrays = list(embeddings)
    write_part(state, lambda: arrays, sum(map(len, arrays)), written.append)
    return b"".join(written)


def write_part(
    state: IndexState,
    embeddings: Blocks,
    rows: int,
    write: Callable[[bytes], object],
) -> None:
    """Write the FAISS file of one part, a piece at a time. ``embeddings`` gives its ``rows`` vectors, float16
    (any, dim) each, in order, as often as it is called; PQ and HNSW alone hold them all. Zero rows are
    allowed. Raises ValueError for vectors of another dimension or, but for PQ and HNSW, another number."""
    faiss = load_faiss()

    if can_stream(state):
        stream_part(state, lambda: _blocks(embeddings(), state.dim), rows, write)
        return
    index = empty_index(state)
    with one_thread():
        for block in _blocks(embeddings(), state.dim):
            index.add(block.astype(np.float32))
        if state.spec.lists:
            # In place of the centroids, which all parts share, an empty index; and FAISS's default number of
            # lists to probe, which is the state's to say.
            index.own_fields = False
            index.quantizer = faiss.IndexFlatIP(state.dim)
            index.nprobe = 1
        faiss.write_index(index, faiss.PyCallbackIOWriter(write, WRITE_BYTES))


def open_part(state: IndexState, buffer: bytes | memoryview | npt.NDArray[np.uint8], rows: int) -> Part:
    """Open the FAISS file of a part of ``rows`` rows, without copying it. The caller has checked its bytes
    and does not change them.

    Raises CorruptError if FAISS cannot read them or if they hold anything but this state's index with that
    many vectors.
    """
    faiss = load_faiss()

    data = np.frombuffer(buffer, dtype=np.uint8)
    check_part_bytes(state, data, rows)
    with _limits(len(data), state.spec.lists + rows):
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data))
            index = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
        except (RuntimeError, MemoryError, ValueError) as problem:
            raise CorruptError(f"index: FAISS cannot read the file: {_last_line(problem)}") from problem
    if reader.rp_ != len(data) or index.ntotal != rows:
        raise CorruptError(f"index: FAISS reads {reader.rp_} of {len(data)} bytes, {index.ntotal} vectors")
    if state.spec.lists:
        index.nprobe = state.probes
    return Part(index, rows, data)


def _blocks(embeddings: Iterable[npt.NDArray[np.float16]], dim: int) -> Iterator[npt.NDArray[np.float16]]:
    """The same rows in blocks of ``BLOCK_ROWS``, the last one shorter."""
    held: list[npt.NDArray[np.float16]] = []
    number = 0
    for array in embeddings:
        if array.ndim != 2 or array.shape[1] != dim:
            raise ValueError(f"embeddings of shape {array.shape}, expected (rows, {dim})")
        held.append(array)
        number += len(array)
        while number >= BLOCK_ROWS:
            joined = np.concatenate(held)
            yield joined[:BLOCK_ROWS]
            held, number = [joined[BLOCK_ROWS:]], number - BLOCK_ROWS
    if number:
        yield np.concatenate(held)


@contextmanager
def _limits(size: int, loops: int) -> Iterator[None]:
    """FAISS's process-wide limits on what a file may make it allocate, put back afterwards."""
    faiss = load_faiss()

    with _limits_lock:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(_LIMIT_FACTOR * (size + _LIMIT_SLACK))
        faiss.set_deserialization_loop_limit(loops + _LIMIT_SLACK)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def _last_line(problem: BaseException) -> str:
    """FAISS's message without the C++ signature before it."""
    return str(problem).rsplit(": ", 1)[-1].strip()[:200]
