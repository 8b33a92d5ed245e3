"""Reads one shard of an open bank. Every batch is checked against the manifest's digest before it is parsed,
once per opened file; thread-safe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from m3build_formats.arrow_file import CheckedArrowFile
from m3build_formats.entries import ShardEntry
from m3build_formats.errors import CorruptError, MismatchError
from m3build_formats.index_file import check_index_type
from m3build_formats.mapped_file import MappedFile
from m3build_formats.shard_schema import (
    CHUNKS_SCHEMA,
    DOCUMENTS_SCHEMA,
    ChunkRow,
    DocumentRow,
    Occurrence,
    embeddings_schema,
    memories_schema,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ID_BYTES = 32


class Shard:
    """The tables of a shard: ``rows`` chunks, memories and embeddings in one order, and ``documents``
    documents."""

    def __init__(self, entry: ShardEntry, directory: int, row_bytes: int, dim: int) -> None:
        self.entry = entry
        self.rows: int = entry.rows
        self.documents: int = entry.documents
        self.row_bytes = row_bytes
        self.dim = dim
        files = {kind: MappedFile(file, directory) for kind, file in entry.files()}
        self._files = tuple(files.values())
        self._chunks = _table(files["chunks"], CHUNKS_SCHEMA, _ID_BYTES)
        self._documents = _table(files["documents"], DOCUMENTS_SCHEMA, _ID_BYTES)
        self._embeddings = _table(files["embeddings"], embeddings_schema(dim), 2 * dim)
        self._index = files["index"]
        self._memories: CheckedArrowFile | None = None
        if "memories" in files:
            self._memories = _table(files["memories"], memories_schema(row_bytes), row_bytes)

    @property
    def has_memories(self) -> bool:
        return self._memories is not None

    def release(self) -> None:
        """Hands the pages of all files that were read back to the system (see `MappedFile.release`)."""
        for file in self._files:
            file.release()

    def chunk(self, row: int) -> ChunkRow:
        """The chunk in ``row``; raises IndexError, CorruptError."""
        batch, number = self._chunks.place(row)
        return _chunk_row(self._chunks.batch(batch), number)

    def title_and_text(self, row: int) -> tuple[str, str]:
        """Those of the chunk in ``row``, for less than the whole chunk costs; raises IndexError,
        CorruptError."""
        batch, number = self._chunks.place(row)
        columns = self._chunks.batch(batch)
        return columns.column("title")[number].as_py(), columns.column("text")[number].as_py()

    def chunks(self) -> Iterator[ChunkRow]:
        """All chunks in row order."""
        for batch in self._chunks.batches():
            for number in range(batch.num_rows):
                yield _chunk_row(batch, number)

    def chunk_batches(self) -> Iterator[Any]:
        """All chunks as pyarrow record batches in row order, for work on whole columns."""
        return self._chunks.batches()

    def chunk_id(self, row: int) -> bytes:
        """The raw 32-byte id of the chunk in ``row``; raises IndexError, CorruptError."""
        batch, number = self._chunks.place(row)
        identity: bytes = self._chunks.batch(batch).column("id")[number].as_py()
        return identity

    def chunk_ids(self) -> Iterator[NDArray[np.uint8]]:
        """Ids of all chunks as uint8 arrays of shape (n, 32), in row order."""
        for batch in self._chunks.batches():
            yield _fixed_width(batch.column("id"), _ID_BYTES)

    def document(self, row: int) -> DocumentRow:
        """The document in ``row`` of the documents table; raises IndexError, CorruptError."""
        batch, number = self._documents.place(row)
        return _document_row(self._documents.batch(batch), number)

    def document_rows(self) -> Iterator[DocumentRow]:
        """All documents in row order."""
        for batch in self._documents.batches():
            for number in range(batch.num_rows):
                yield _document_row(batch, number)

    def document_batches(self) -> Iterator[Any]:
        """All documents as pyarrow record batches in row order."""
        return self._documents.batches()

    def memories(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Memory rows as a new uint8 array of shape (len(rows), row_bytes), in the order asked for.

        Reads in file order, so that each batch is touched once. Raises IndexError, CorruptError, and
        MismatchError where the shard has no memories. Rows may be cold (`cold_rows`).
        """
        table = self._memory_table()
        wanted = np.asarray(rows, np.int64).reshape(-1)
        found = np.empty((len(wanted), self.row_bytes), np.uint8)
        if not len(wanted):
            return found
        if not (wanted.min() >= 0 and wanted.max() < table.rows):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a shard that has {table.rows}")
        order = np.argsort(wanted, kind="stable")
        batches = wanted[order] // table.rows_per_batch
        starts = np.flatnonzero(np.diff(batches, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            batch, places = int(batches[start]), order[start:end]
            block = _fixed_width(table.batch(batch).column("memory"), self.row_bytes)
            found[places] = block[wanted[places] - batch * table.rows_per_batch]
        return found

    def memory_batches(self) -> Iterator[NDArray[np.uint8]]:
        """All memory rows as read-only uint8 arrays of shape (n, row_bytes), in row order, without a copy."""
        for batch in self._memory_table().batches():
            yield _fixed_width(batch.column("memory"), self.row_bytes)

    def embeddings(self) -> Iterator[NDArray[np.float16]]:
        """All retrieval vectors as read-only float16 arrays of shape (n, dim), in row order, without a
        copy."""
        for batch in self._embeddings.batches():
            values = batch.column("embedding").flatten().to_numpy(zero_copy_only=True)
            yield values.reshape(-1, self.dim)

    def index_bytes(self) -> memoryview:
        """The serialized FAISS index, after a check of the file's SHA-256 (once) and of its type."""
        data = self._index.whole()
        check_index_type(bytes(data[:4]), self.entry.index.name, CorruptError)
        return data

    def _memory_table(self) -> CheckedArrowFile:
        if self._memories is None:
            raise MismatchError("this shard holds no memories yet, only text and its index")
        return self._memories


def _table(file: MappedFile, schema: Any, least: int) -> CheckedArrowFile:
    # Before anyone sizes an array by them: a stranger's row counts are bounded by bytes that are there.
    if (file.entry.rows or 0) * least > file.entry.bytes:
        raise CorruptError(
            f"{file.entry.name}: has {file.entry.bytes} bytes, too few for {file.entry.rows} rows"
        )
    return CheckedArrowFile(file.entry, file.data, schema)


def _fixed_width(column: Any, width: int) -> NDArray[np.uint8]:
    """A fixed_size_binary column as (n, width) uint8 without a copy."""
    values = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return values.reshape(len(column), width)


def _chunk_row(batch: Any, number: int) -> ChunkRow:
    ends = batch.column("token_ends")[number].values.to_numpy(zero_copy_only=True)
    return ChunkRow(
        id=batch.column("id")[number].as_py(),
        text=batch.column("text")[number].as_py(),
        title=batch.column("title")[number].as_py(),
        token_ends=tuple(ends.tolist()),
        occurrences=tuple(Occurrence(**item) for item in batch.column("occurrences")[number].as_py()),
    )


def _document_row(batch: Any, number: int) -> DocumentRow:
    return DocumentRow(**{name: batch.column(name)[number].as_py() for name in DOCUMENTS_SCHEMA.names})
