"""Streams the four tables of a shard to disk.

Rows per batch are fixed (512 chunks, 1,024 documents) or follow from the width of a row (memories,
embeddings), and batches are built from exact buffers; so a file's bytes depend on its rows alone, however the
producer groups them, and a writer holds one batch at a time. What the
limits of the format forbid is refused here with InputError; a lone surrogate in a text is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from m3build_formats.arrow_file import exact_buffer, write_table
from m3build_formats.data_directory import FileTarget, Sink
from m3build_formats.entries import FileEntry
from m3build_formats.errors import InputError, UsageError
from m3build_formats.layout import (
    CHUNK_ROWS_PER_BATCH,
    DOCUMENT_ROWS_PER_BATCH,
    MAX_CHUNK_CHARACTERS,
    MAX_DIMENSION,
    MAX_DOCUMENT_ID_BYTES,
    MAX_METADATA_BYTES,
    MAX_REFERENCE_TOKENS,
    MAX_ROW_BYTES,
    MAX_TITLE_BYTES,
    fixed_width_rows_per_batch,
    reference_text,
)
from m3build_formats.shard_schema import (
    CHUNKS_SCHEMA,
    DOCUMENTS_SCHEMA,
    OCCURRENCE,
    ChunkRow,
    DocumentRow,
    Occurrence,
    embeddings_schema,
    memories_schema,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ChunkRow",
    "DocumentRow",
    "Occurrence",
    "write_chunks",
    "write_documents",
    "write_embeddings",
    "write_index",
    "write_memories",
]

Row = TypeVar("Row")
_MAX_ARROW_STRING_BYTES: Final = (1 << 31) - 1


def write_documents(target: FileTarget, rows: Iterable[DocumentRow]) -> FileEntry:
    """Writes a documents table; raises InputError for a value over its limit (`layout.MAX_DOCUMENT_ID_BYTES`
    and the like)."""
    return _write_rows(target, "documents", DOCUMENTS_SCHEMA, rows, DOCUMENT_ROWS_PER_BATCH, _documents_batch)


def write_chunks(target: FileTarget, rows: Iterable[ChunkRow]) -> FileEntry:
    """Writes a chunks table, rows in order of first occurrence; raises InputError for a chunk over the
    format's limits."""
    return _write_rows(target, "chunks", CHUNKS_SCHEMA, rows, CHUNK_ROWS_PER_BATCH, _chunks_batch)


def write_memories(target: FileTarget, arrays: Iterable[NDArray[np.uint8]], row_bytes: int) -> FileEntry:
    """Writes a memories table from uint8 arrays of shape (n, row_bytes), n of any size, in row order."""
    if not 0 < row_bytes <= MAX_ROW_BYTES:
        raise InputError(f"a memory row of {row_bytes} bytes: format 1 allows 1 to {MAX_ROW_BYTES}")
    schema, each = memories_schema(row_bytes), fixed_width_rows_per_batch(row_bytes)

    def batches() -> Iterator[Any]:
        for block in _regroup(arrays, each, row_bytes, np.dtype(np.uint8)):
            column = pa.FixedSizeBinaryArray.from_buffers(
                schema.field(0).type, len(block), [None, exact_buffer(block)]
            )
            yield pa.record_batch([column], schema=schema)

    return target.add_file("memories", lambda sink: write_table(sink, schema, batches(), each))


def write_embeddings(target: FileTarget, arrays: Iterable[NDArray[np.float16]], dim: int) -> FileEntry:
    """Writes an embeddings table from float16 arrays of shape (n, dim), n of any size, in row order."""
    if not 0 < dim <= MAX_DIMENSION:
        raise InputError(f"embeddings of {dim} dimensions: format 1 allows 1 to {MAX_DIMENSION}")
    schema, each = embeddings_schema(dim), fixed_width_rows_per_batch(2 * dim)

    def batches() -> Iterator[Any]:
        for block in _regroup(arrays, each, dim, np.dtype(np.float16)):
            values = pa.Array.from_buffers(pa.float16(), block.size, [None, exact_buffer(block)])
            column = pa.FixedSizeListArray.from_arrays(values, type=schema.field(0).type)
            yield pa.record_batch([column], schema=schema)

    return target.add_file("embeddings", lambda sink: write_table(sink, schema, batches(), each))


def write_index(
    target: FileTarget,
    data: bytes | bytearray | memoryview | Callable[[Callable[[bytes], object]], object],
) -> FileEntry:
    """Writes a serialized FAISS index, or one that the function ``data(write)`` gives a piece at a time; its
    type must be on the allow-list. Raises UsageError."""
    from m3build_formats.index_file import check_index_type

    if not callable(data):
        check_index_type(bytes(memoryview(data)[:4]), "the index to be written", UsageError)
        return target.add_file("index", data)

    def content(sink: Sink) -> None:
        head = b""

        def write(data: bytes) -> None:
            nonlocal head
            if len(head) < 4:
                head = (head + data[:4])[:4]
                if len(head) == 4:
                    check_index_type(head, "the index to be written", UsageError)
            sink.write(data)

        data(write)
        if len(head) < 4:
            check_index_type(head, "the index to be written", UsageError)

    return target.add_file("index", content)


_NO_ENDS = np.empty(0, np.uint16)


def _write_rows(
    target: FileTarget,
    kind: str,
    schema: Any,
    rows: Iterable[Row],
    each: int,
    build: Callable[[list[Row]], Any],
) -> FileEntry:
    def batches() -> Iterator[Any]:
        remaining = iter(rows)
        while group := list(islice(remaining, each)):
            yield build(group)

    return target.add_file(kind, lambda sink: write_table(sink, schema, batches(), each))


def _regroup(
    arrays: Iterable[NDArray[Any]], each: int, width: int, dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Blocks of ``each`` rows (the last may be shorter) in one reused buffer; a block is valid until the next
    is asked for."""
    block, filled = np.empty((each, width), dtype), 0
    for array in arrays:
        if array.ndim != 2 or array.shape[1] != width or array.dtype != dtype:
            raise ValueError(
                f"an array {array.shape} of {array.dtype} where (n, {width}) of {dtype} is expected"
            )
        taken = 0
        while taken < len(array):
            count = min(each - filled, len(array) - taken)
            block[filled : filled + count] = array[taken : taken + count]
            filled, taken = filled + count, taken + count
            if filled == each:
                yield block
                filled = 0
    if filled:
        yield block[:filled]


def _documents_batch(rows: list[DocumentRow]) -> Any:
    for row in rows:
        for name, value, limit in (
            ("id", row.id, MAX_DOCUMENT_ID_BYTES),
            ("source", row.source, MAX_DOCUMENT_ID_BYTES),
            ("title", row.title, MAX_TITLE_BYTES),
            ("metadata", row.metadata, MAX_METADATA_BYTES),
        ):
            if len(value) * 4 > limit and len(value.encode()) > limit:
                raise InputError(f"document {row.id[:80]!r}: its {name} has more than {limit} bytes of UTF-8")
    return pa.record_batch(
        [
            _strings([row.id for row in rows]),
            _strings([row.source for row in rows]),
            _integers([row.position for row in rows], np.uint64),
            _strings([row.title for row in rows]),
            _strings([row.metadata for row in rows]),
            _digests([row.sha256 for row in rows]),
            _integers([row.characters for row in rows], np.uint64),
            _integers([row.chunks for row in rows], np.uint32),
            _integers([row.part for row in rows], np.uint32),
        ],
        schema=DOCUMENTS_SCHEMA,
    )


def _chunks_batch(rows: list[ChunkRow]) -> Any:
    for row in rows:
        if row.tokens > MAX_REFERENCE_TOKENS:
            raise InputError(
                f"chunk {row.id.hex()}: {row.tokens} tokens, format 1 allows {MAX_REFERENCE_TOKENS}"
            )
        if len(reference_text(row.title, row.text)) > MAX_CHUNK_CHARACTERS:
            raise InputError(f"chunk {row.id.hex()}: more than {MAX_CHUNK_CHARACTERS} characters")
    occurrences = [occurrence for row in rows for occurrence in row.occurrences]
    columns = [
        _strings([item.document for item in occurrences]),
        _integers([item.row for item in occurrences], np.uint32),
        _integers([item.start for item in occurrences], np.uint64),
        _integers([item.end for item in occurrences], np.uint64),
    ]
    return pa.record_batch(
        [
            _digests([row.id for row in rows]),
            _strings([row.text for row in rows]),
            _strings([row.title for row in rows]),
            _integers([row.tokens for row in rows], np.uint16),
            _lists(
                [row.tokens for row in rows],
                pa.array(
                    np.concatenate([_NO_ENDS, *(np.asarray(row.token_ends, np.uint16) for row in rows)])
                ),
                CHUNKS_SCHEMA.field("token_ends").type,
            ),
            _lists(
                [len(row.occurrences) for row in rows],
                pa.StructArray.from_arrays(columns, fields=list(OCCURRENCE)),
                CHUNKS_SCHEMA.field("occurrences").type,
            ),
        ],
        schema=CHUNKS_SCHEMA,
    )


def _strings(values: list[str]) -> Any:
    encoded = [value.encode() for value in values]
    if sum(map(len, encoded)) > _MAX_ARROW_STRING_BYTES:
        raise InputError(
            "more than 2 GiB of text in one record batch: chunks occur in too many documents of one shard"
        )
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(values), exact_buffer(offsets), exact_buffer(b"".join(encoded)))


def _integers(values: list[int], dtype: type[np.unsignedinteger[Any]]) -> Any:
    return pa.array(np.array(values, dtype))


def _digests(values: list[bytes]) -> Any:
    if any(len(value) != 32 for value in values):
        raise ValueError("a SHA-256 has 32 bytes")
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), len(values), [None, exact_buffer(b"".join(values))]
    )


def _lists(lengths: list[int], values: Any, kind: Any) -> Any:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    starts: Any = pa.array(offsets)
    return pa.ListArray.from_arrays(starts, values, type=kind)
