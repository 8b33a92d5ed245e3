"""Chunks with their token ids as Arrow record batches, and back."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from m3build.records import Chunk

_CHUNK_FIELDS: list[Any] = [
    ("text", pa.string()),
    ("title", pa.string()),
    ("start", pa.uint64()),
    ("end", pa.uint64()),
    ("token_ids", pa.list_(pa.uint32())),
    ("token_ends", pa.list_(pa.uint16())),
]
CHUNKS = pa.schema(_CHUNK_FIELDS)


def chunk_batch(chunks: Sequence[Chunk]) -> pa.RecordBatch:
    """The chunks as one record batch."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([c.text for c in chunks], pa.string()),
            pa.array([c.title for c in chunks], pa.string()),
            pa.array([c.start for c in chunks], pa.uint64()),
            pa.array([c.end for c in chunks], pa.uint64()),
            # One by one: a chunk that comes from a bank knows where its tokens end, but not their ids.
            _joined([c.token_ids for c in chunks], np.uint32),
            _joined([c.token_ends for c in chunks], np.uint16),
        ],
        schema=CHUNKS,
    )


def _joined(parts: Sequence[Sequence[int]], dtype: type[np.unsignedinteger[Any]]) -> pa.ListArray[Any]:
    bounds = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=bounds[1:])
    offsets: Any = pa.array(bounds)
    values: Any = pa.array(np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)]))
    return pa.ListArray.from_arrays(offsets, values)


def chunks_of(batch: Any, first: int, count: int) -> list[Chunk]:
    """``count`` chunks of a record batch of chunks, from row ``first`` on."""
    rows = batch.slice(first, count)
    texts, titles = rows.column("text").to_pylist(), rows.column("title").to_pylist()
    starts, ends = rows.column("start").to_pylist(), rows.column("end").to_pylist()
    # As Python integers the tokens of a batch would take ten times as much.
    ids, token_ends = _lists(rows.column("token_ids"), "I"), _lists(rows.column("token_ends"), "H")
    return [Chunk(*columns) for columns in zip(texts, starts, ends, titles, ids, token_ends, strict=True)]


def _lists(column: Any, code: str) -> list[array[int]]:
    """The lists of a column, each as an array."""
    values, bounds = column.values.to_numpy(), column.offsets.to_pylist()
    return [array(code, values[lo:hi].tobytes()) for lo, hi in pairwise(bounds)]
