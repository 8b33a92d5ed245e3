"""Documents that earlier builds have cut, so that none is cut and tokenized twice while it stays the same,
wherever it stands now.

A document's chunks follow from its text, title and headings, given the chunker and its tokenizer. Pieces
keep a hash of the three for each document; those of earlier pieces go into a SQLite file (some 60 bytes a
document) that workers read too, and the chunks are read from the piece when they are needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.ipc

from m3build.chunking import Chunker
from m3build.chunking.cutting import groups_of
from m3build.pipeline.chunk_batches import chunks_of
from m3build.records import Chunk, Document

_OPEN_PIECES: Final = 8
_CACHE_KIB: Final = 4 * 1024


def cut_key(document: Document) -> bytes:
    """SHA-256 of all of a document that shapes its chunks."""
    outline = json.dumps([document.title, [[h.start, h.level, h.text] for h in document.headings]])
    return hashlib.sha256(outline.encode() + b"\0" + document.text.encode("utf-8")).digest()


def list_documents(path: Path, pieces: Iterable[tuple[Path, Path]]) -> None:
    """Write the SQLite file that ``KnownDocuments`` reads, from pieces as pairs of Arrow files (documents,
    chunks)."""
    path.unlink(missing_ok=True)
    with closing(_connect(path, "rwc")) as database:
        database.executescript(
            "CREATE TABLE known (cut BLOB PRIMARY KEY, piece INTEGER, batch INTEGER, first INTEGER, "
            "chunks INTEGER) WITHOUT ROWID; CREATE TABLE pieces (number INTEGER PRIMARY KEY, chunks TEXT); "
            "BEGIN"
        )
        for number, (documents, chunks) in enumerate(pieces):
            database.execute("INSERT INTO pieces VALUES (?, ?)", [number, os.fspath(chunks.absolute())])
            database.executemany(
                "INSERT OR IGNORE INTO known VALUES (?, ?, ?, ?, ?)", _rows(number, documents)
            )
        database.execute("COMMIT")


class KnownDocuments:
    """The documents of the finished pieces that ``list_documents`` listed in ``path``, all of the same
    chunker and tokenizer as the build's. A context manager. ``found`` counts the documents that were
    there."""

    def __init__(self, path: Path) -> None:
        self._database = _connect(path, "ro")
        rows = self._database.execute("SELECT chunks FROM pieces ORDER BY number")
        self._chunks = [Path(chunks) for (chunks,) in rows]
        self._open: OrderedDict[int, Any] = OrderedDict()
        # Neighbours, as a rule, come one after the other: their batch is decompressed once.
        self._last: tuple[tuple[int, int], Any] = ((-1, -1), None)
        self.found = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        self._database.close()

    def cut_many(
        self, documents: Iterable[Document], chunker: Chunker, one_by_one: bool = False
    ) -> Iterator[tuple[Document, list[Chunk]]]:
        """Each document with its chunks, in order: as they are known, or else as ``chunker`` cuts it. With
        ``one_by_one`` none is asked for before the last is cut."""
        for group in ([document] for document in documents) if one_by_one else groups_of(documents):
            chunks = [self._of(document) for document in group]
            new = chunker.cut_many(
                document for document, known in zip(group, chunks, strict=True) if known is None
            )
            for document, known in zip(group, chunks, strict=True):
                yield (document, known) if known is not None else next(new)

    def _of(self, document: Document) -> list[Chunk] | None:
        row = self._database.execute(
            "SELECT piece, batch, first, chunks FROM known WHERE cut = ?", [cut_key(document)]
        ).fetchone()
        if row is None:
            return None
        piece, batch, first, count = row
        self.found += 1
        if self._last[0] != (piece, batch):
            self._last = (piece, batch), self._file(piece).get_batch(batch)
        return chunks_of(self._last[1], first, count)

    def _file(self, piece: int) -> Any:
        if piece not in self._open:
            if len(self._open) >= _OPEN_PIECES:
                self._open.popitem(last=False)
            self._open[piece] = pa.ipc.open_file(pa.memory_map(str(self._chunks[piece])))
        self._open.move_to_end(piece)
        return self._open[piece]


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", isolation_level=None, uri=True)
    # Scratch: what a crash leaves of it is made anew.
    database.executescript(
        f"PRAGMA cache_size = -{_CACHE_KIB}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF"
    )
    return database


def _rows(piece: int, documents: Path) -> Iterator[tuple[bytes, int, int, int, int]]:
    with pa.memory_map(str(documents)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            batch: Any = file.get_batch(number)
            first = 0
            keys, counts = batch.column("cut").to_pylist(), batch.column("chunks").to_pylist()
            for key, count in zip(keys, counts, strict=True):
                yield key, piece, number, first, count
                first += count
