"""The files of a piece: its documents, their chunks with token ids, and what was rejected, if anything was.

The two Arrow files have as many record batches, and batch n of the one holds the chunks of batch n of the
other. All are written and read as streams: neither a large file nor a long document is held as a whole more
than once, and a file of which every line is bad takes no more memory than any other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from m3build.pipeline.chunk_batches import CHUNKS, chunk_batch, chunks_of
from m3build.pipeline.known_documents import cut_key
from m3build.pipeline.whole_files import place, temporary_of
from m3build.records import Chunk, Document
from m3build_formats.canonical_json import canonical_json
from m3build_formats.shard_tables import DocumentRow

# A batch is closed by whichever comes first, so that neither many small documents nor a few huge ones pile
# up.
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 1 << 18

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


@dataclass(frozen=True, slots=True)
class PieceFiles:
    """Where the files of one piece stand; that of the rejects is there only where something was rejected."""

    documents: Path
    chunks: Path
    rejects: Path

    @classmethod
    def of(cls, directory: Path, key: str) -> PieceFiles:
        """The files of the piece with this key."""
        return cls(
            directory / f"{key}.documents.arrow",
            directory / f"{key}.chunks.arrow",
            directory / f"{key}.rejects.jsonl.zst",
        )

    def digests(self) -> list[str | None]:
        """Hex SHA-256 of each file, None for that of the rejects where there is none. Raises OSError where
        one cannot be read."""
        rejects = _digest_of(self.rejects) if self.rejects.exists() else None
        return [_digest_of(self.documents), _digest_of(self.chunks), rejects]

    def move_to(self, other: PieceFiles) -> None:
        """Give the files other names, in place of any that have them. Raises OSError where the disk does not
        take them."""
        os.replace(self.documents, other.documents)
        os.replace(self.chunks, other.chunks)
        if self.rejects.exists():
            os.replace(self.rejects, other.rejects)
        else:
            other.rejects.unlink(missing_ok=True)


def write_piece(files: PieceFiles, cut: Iterable[tuple[Document, list[Chunk]]]) -> None:
    """Write documents and chunks; each file appears under its name only when it is whole. Raises OSError when
    the disk does not take them."""
    with _ArrowSink(files.documents, DOCUMENTS) as documents, _ArrowSink(files.chunks, CHUNKS) as chunks:
        for batch in _batches(cut):
            documents.write(_document_batch(batch))
            chunks.write(chunk_batch([chunk for _, _, own in batch for chunk in own]))


def read_piece(files: PieceFiles) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    """The documents of a piece with their chunks, in order, a record batch at a time."""
    with pa.memory_map(str(files.documents)) as left, pa.memory_map(str(files.chunks)) as right:
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


def _digest_of(path: Path) -> str:
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


class _ArrowSink:
    """An Arrow file that appears under its name only when it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._temporary = temporary_of(path)
        self._stream = pa.OSFile(str(self._temporary), "wb")
        # Pieces stay under build/, and would be several times the corpus.
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))
        self._writer = pa.ipc.new_file(self._stream, schema, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def __enter__(self) -> _ArrowSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        self._stream.close()
        place(self._temporary, self._path, kind is None)
