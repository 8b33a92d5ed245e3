"""One part of an index: the FAISS file of one shard, written from embeddings and opened from checked bytes.

Design choices:

- Vectors are assigned to lists in blocks of a fixed number of rows, on one thread: the bytes of a part depend
  on its vectors and the state alone, not on how they were handed over nor on the machine's cores.
- In place of the coarse centroids a part has an empty flat index: any FAISS reads the file, and a thousand
  parts do not hold a thousand copies. Searches get their lists from the shared centroids.
- A part is read in place: FAISS's arrays point into the given buffer, as a rule a memory map, whose bytes the
  caller has checked.
- FAISS's deserialization limits are set to what the file can hold at most, and what came out is compared with
  the state before any use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.index.library import load_faiss, one_thread
from m3build.index.spec import IndexSpec
from m3build.index.state import IndexState, empty_index
from m3build_formats.errors import CorruptError

BLOCK_ROWS = 4096
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


def build_part(state: IndexState, embeddings: Iterable[npt.NDArray[np.float16]]) -> memoryview:
    """The bytes of the FAISS file of one part: its embeddings, float16 (any, dim) each, in the order of their
    rows. Zero rows are allowed."""
    faiss = load_faiss()

    index = empty_index(state)
    with one_thread():
        for block in _blocks(embeddings, state.dim):
            index.add(block.astype(np.float32))
        if state.spec.lists:
            index.own_fields = False
            index.quantizer = faiss.IndexFlatIP(state.dim)
            # How many lists to probe is the state's to say; FAISS's default keeps the bytes free of it.
            index.nprobe = 1
        return memoryview(faiss.serialize_index(index))


def open_part(state: IndexState, buffer: bytes | memoryview | npt.NDArray[np.uint8], rows: int) -> Part:
    """Open the FAISS file of a part of ``rows`` rows, without copying it. The caller has checked its bytes
    and does not change them.

    Raises CorruptError if FAISS cannot read them or if they hold anything but this state's index with that
    many vectors.
    """
    faiss = load_faiss()

    data = np.frombuffer(buffer, dtype=np.uint8)
    if not len(data):
        raise CorruptError("index: an empty file is no FAISS index")
    with _limits(len(data), state.spec.lists + rows):
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data))
            index = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
        except (RuntimeError, MemoryError, ValueError) as problem:
            raise CorruptError(f"index: FAISS cannot read the file: {_last_line(problem)}") from problem
    # FAISS 1.15 does not notice when a file ends inside the last element of a list, nor that bytes follow.
    if reader.rp_ != len(data):
        raise CorruptError(f"index: the file has {len(data)} bytes, but what it holds takes {reader.rp_}")
    problem_text = _misfit(state, index, rows)
    if problem_text:
        raise CorruptError(
            f"index: {problem_text}; expected {state.spec} of {rows} vectors with {state.dim} dimensions"
        )
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


def _misfit(state: IndexState, index: Any, rows: int) -> str:
    """What of a loaded index is not as the state says; "" if all is."""
    faiss = load_faiss()

    expected = _class_name(state.spec)
    if type(index).__name__ != expected:
        return f"the file holds {type(index).__name__}, not {expected}"
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or index.d != state.dim or index.ntotal != rows:
        return f"metric {index.metric_type}, {index.d} dimensions, {index.ntotal} vectors"
    fresh = empty_index(state)
    if state.spec.storage in ("SQfp16", "SQ8"):
        if index.sq.qtype != fresh.sq.qtype:
            return f"scalar quantizer type {index.sq.qtype}"
        if not np.array_equal(faiss.vector_to_array(index.sq.trained), state.tables):
            return "another scalar quantizer's tables"
    if state.spec.storage == "PQ" and not np.array_equal(
        faiss.vector_to_array(index.pq.centroids), state.tables
    ):
        return "another product quantizer's tables"
    if state.spec.lists:
        if index.nlist != state.spec.lists or index.by_residual:
            return f"{index.nlist} lists" + (" of residuals" if index.by_residual else "")
        if sum(index.invlists.list_size(number) for number in range(index.nlist)) != rows:
            return "lists that do not add up to its vectors"
    return ""


def _class_name(spec: IndexSpec) -> str:
    if spec.storage == "HNSW":
        return "IndexHNSWFlat"
    if spec.lists:
        return {"Flat": "IndexIVFFlat", "PQ": "IndexIVFPQ"}.get(spec.storage, "IndexIVFScalarQuantizer")
    return "IndexFlatIP" if spec.storage == "Flat" else "IndexScalarQuantizer"


def _last_line(problem: BaseException) -> str:
    """FAISS's message without the C++ signature before it."""
    return str(problem).rsplit(": ", 1)[-1].strip()[:200]
