"""Reads the documents of a finished bank back, each with all its chunks, as the first stage of a build gives
them; only token ids are not stored, and whoever encodes nothing needs none.

One shard at a time is in memory. Every batch is checked against its digest before it is parsed, and what
SPEC.md says of rows that belong together is checked here, since a bank may come from a stranger.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3build.records import Chunk, reference_text
from m3build_formats.errors import CorruptError
from m3build_formats.open_bank import BankFiles
from m3build_formats.shard import Shard
from m3build_formats.shard_tables import DocumentRow


def stored_documents(files: BankFiles) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    """All documents of an open bank in its order, the parts of those that span shards put together:
    ``chunks`` counts all of a document's, ``part`` is 0, and chunks have no token ids.

    Raises CorruptError where bytes do not have their digest or rows do not fit together.
    """
    held: DocumentRow | None = None
    chunks: list[Chunk] = []
    parts = 0
    for number, shard in enumerate(files.shards):
        for row, here in _documents_of(shard, number):
            if row.part == 0:
                if held is not None:
                    yield replace(held, chunks=len(chunks)), chunks
                held, chunks, parts = row, here, 1
            elif held is not None and (row.id, row.part) == (held.id, parts):
                chunks += here
                parts += 1
            else:
                raise CorruptError(
                    f"shard {number}: holds part {row.part} of document {row.id[:80]!r}, and the one before "
                    "is not where it should be"
                )
        shard.release()
    if held is not None:
        yield replace(held, chunks=len(chunks)), chunks


def _documents_of(shard: Shard, number: int) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    """The documents of one shard with the chunks that it holds of them, in order."""
    chunks = _Chunks(shard, number)
    row = 0
    for batch in shard.document_batches():
        for values in batch.to_pylist():
            document = DocumentRow(**values)
            found = chunks.of_document(row)
            if len(found) != document.chunks:
                raise CorruptError(
                    f"shard {number}: document {document.id[:80]!r} has {len(found)} chunks, its row says "
                    f"{document.chunks}"
                )
            yield document, found
            row += 1


class _Chunks:
    """The chunks of a shard, and their occurrences in the order of documents."""

    def __init__(self, shard: Shard, number: int) -> None:
        self._texts: list[str] = []
        self._titles: list[str] = []
        self._token_ends: list[array[int]] = []
        columns: list[list[NDArray[Any]]] = [[], [], [], []]
        for batch in shard.chunk_batches():
            first = len(self._texts)
            self._texts += batch.column("text").to_pylist()
            self._titles += batch.column("title").to_pylist()
            values, bounds = _list_parts(batch.column("token_ends"))
            ends = values.to_numpy()
            # As Python integers the tokens of a shard would take ten times as much.
            self._token_ends += [array("H", ends[lo:hi].tobytes()) for lo, hi in pairwise(bounds.tolist())]
            places, bounds = _list_parts(batch.column("occurrences"))
            columns[0].append(np.repeat(np.arange(first, len(self._texts)), np.diff(bounds)))
            for column, name in zip(columns[1:], ("row", "start", "end"), strict=True):
                column.append(places.field(name).to_numpy()[bounds[0] : bounds[-1]])
        self._number = number
        chunk, row, start, end = (np.concatenate(column or [np.empty(0, np.int64)]) for column in columns)
        if row.size and int(row.max()) >= shard.documents:
            raise CorruptError(f"shard {number}: a chunk stands in document {row.max()} of {shard.documents}")
        order = np.lexsort((start, row))
        self._chunk, self._start, self._end = chunk[order], start[order], end[order]
        self._bounds = np.searchsorted(row[order], np.arange(shard.documents + 1))

    def of_document(self, row: int) -> list[Chunk]:
        """The chunks of one document, by where they start."""
        here = slice(self._bounds[row], self._bounds[row + 1])
        return [
            self._chunk_at(at, start, end)
            for at, start, end in zip(
                self._chunk[here].tolist(), self._start[here].tolist(), self._end[here].tolist(), strict=True
            )
        ]

    def _chunk_at(self, row: int, start: int, end: int) -> Chunk:
        text, title = self._texts[row], self._titles[row]
        length = end - start
        if length != len(text):
            # The row has title and text of its first occurrence; this one divides the reference text in
            # another way.
            whole = reference_text(title, text)
            text, title = whole[-length:], whole[: -length - 1]
            if len(text) != length or reference_text(title, text) != whole:
                raise CorruptError(
                    f"shard {self._number}, row {row}: an occurrence has {length} characters, and the "
                    "reference text cannot be divided so"
                )
        return Chunk(text, start, end, title, (), self._token_ends[row])


def _list_parts(column: Any) -> tuple[Any, NDArray[np.int32]]:
    """The values of a list column, and the bounds of each list in them."""
    return column.values, column.offsets.to_numpy()
