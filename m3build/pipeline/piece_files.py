"""The two Arrow files of a piece: its documents, and their chunks with token ids.

Both have as many record batches, and batch n of the one holds the chunks of batch n of the other, so they are
written and read as streams: neither a large file nor a long document is held as a whole more than once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from m3build.pipeline.known_documents import chunks_of, cut_key
from m3build.records import Chunk, Document
from m3build_formats.canonical_json import canonical_json
from m3build_formats.shard_tables import DocumentRow

# A batch is closed by whichever comes first, so that neither many small documents nor a few huge ones pile
# up.
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 2 << 20

_DOCUMENT_FIELDS: list[Any] = [
    ("id", pa.string()),
    ("source", pa.string()),
    ("position", pa.uint64()),
    ("title", pa.string()),
    ("metadata", pa.string()),
    ("sha256", pa.binary(32)),
    ("characters", pa.uint64()),
    ("chunks", pa.uint32()),
    ("cut", pa.binary(32)),
]
DOCUMENTS = pa.schema(_DOCUMENT_FIELDS)
_CHUNK_FIELDS: list[Any] = [
    ("text", pa.string()),
    ("title", pa.string()),
    ("start", pa.uint64()),
    ("end", pa.uint64()),
    ("token_ids", pa.list_(pa.uint32())),
    ("token_ends", pa.list_(pa.uint16())),
]
CHUNKS = pa.schema(_CHUNK_FIELDS)


def write_piece(documents: Path, chunks: Path, cut: Iterable[tuple[Document, list[Chunk]]]) -> None:
    """Write both files; each appears under its name only when it is whole. Raises OSError when the disk does
    not take them."""
    with _Sink(documents, DOCUMENTS) as document_sink, _Sink(chunks, CHUNKS) as chunk_sink:
        for batch in _batches(cut):
            document_sink.write(_document_batch(batch))
            chunk_sink.write(_chunk_batch([chunk for _, _, own in batch for chunk in own]))


def read_piece(documents: Path, chunks: Path) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    """The documents of a piece with their chunks, in order, a record batch at a time."""
    with pa.memory_map(str(documents)) as left, pa.memory_map(str(chunks)) as right:
        rows_file, cut_file = pa.ipc.open_file(left), pa.ipc.open_file(right)
        for number in range(rows_file.num_record_batches):
            rows: Any = rows_file.get_batch(number)
            cut: Any = cut_file.get_batch(number)
            found = chunks_of(cut, 0, cut.num_rows)
            at = 0
            for row in rows.drop_columns(["cut"]).to_pylist():
                document = DocumentRow(**row)
                yield document, found[at : at + document.chunks]
                at += document.chunks


def digest_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_Row = tuple[DocumentRow, bytes, list[Chunk]]


def _batches(cut: Iterable[tuple[Document, list[Chunk]]]) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    characters = 0
    for document, chunks in cut:
        batch.append((_row(document, len(chunks)), cut_key(document), chunks))
        characters += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _row(document: Document, chunks: int) -> DocumentRow:
    return DocumentRow(
        id=document.id,
        source=document.source,
        position=document.position,
        title=document.title,
        metadata=canonical_json(dict(document.metadata)),
        sha256=hashlib.sha256(document.text.encode("utf-8")).digest(),
        characters=len(document.text),
        chunks=chunks,
    )


def _document_batch(batch: Sequence[_Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{**asdict(row), "cut": key} for row, key, _ in batch], schema=DOCUMENTS
    )


def _chunk_batch(chunks: Sequence[Chunk]) -> pa.RecordBatch:
    bounds = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum([len(c.token_ids) for c in chunks], out=bounds[1:])
    offsets: Any = pa.array(bounds)
    ids: Any = _joined([c.token_ids for c in chunks], np.uint32)
    ends: Any = _joined([c.token_ends for c in chunks], np.uint16)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([c.text for c in chunks], pa.string()),
            pa.array([c.title for c in chunks], pa.string()),
            pa.array([c.start for c in chunks], pa.uint64()),
            pa.array([c.end for c in chunks], pa.uint64()),
            pa.ListArray.from_arrays(offsets, pa.array(ids)),
            pa.ListArray.from_arrays(offsets, pa.array(ends)),
        ],
        schema=CHUNKS,
    )


def _joined(parts: Sequence[Sequence[int]], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])


class _Sink:
    """An Arrow file that appears under its name only when it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        # Of this process alone: a worker whose build is gone may still be about to end.
        self._temporary = path.with_suffix(f".{os.getpid()}.tmp")
        self._stream = pa.OSFile(str(self._temporary), "wb")
        # Pieces stay under build/, and would be several times the corpus.
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))
        self._writer = pa.ipc.new_file(self._stream, schema, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        self._stream.close()
        if kind is None:
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)
