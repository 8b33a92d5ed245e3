"""Which of several banks a document is taken from.

A document that several banks hold with the same content is one document. With other content under the same
id, one bank must be preferred, or the merge is refused. Memory stays bounded: a row of some 50 bytes for each
document in a private temporary SQLite database, which spills to disk.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal

from m3build.records import Chunk
from m3build_formats.errors import CorruptError, InputError
from m3build_formats.shard_tables import DocumentRow

Prefer = Literal["first", "last"]

_CACHE_KIB: Final = 4 * 1024
_ALONE, _SHARED, _CONTESTED, _TAKEN = range(4)


class Claims:
    """All documents of all banks by id. First every bank says what it holds (`enter`), bank after bank; then
    `takes` answers for the documents in the order in which they come. Not for use from several threads."""

    def __init__(self, names: Sequence[str], prefer: Prefer | None, *, compare_chunks: bool = True) -> None:
        self._names = names
        self._prefer = prefer
        self._compare_chunks = compare_chunks
        self.shared = 0
        self.replaced = 0
        # An empty name is SQLite's private temporary database: in memory up to the cache size, then in an
        # unlinked file. One transaction that is never committed.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            f"PRAGMA cache_size = -{_CACHE_KIB}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE claims (id BLOB PRIMARY KEY, content BLOB NOT NULL, bank INTEGER NOT NULL, "
            "latest INTEGER NOT NULL, state INTEGER NOT NULL) WITHOUT ROWID; BEGIN"
        )

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def __len__(self) -> int:
        """Documents, each id once."""
        count: int = self._database.execute("SELECT count(*) FROM claims").fetchone()[0]
        return count

    def enter(self, bank: int, document: DocumentRow, chunks: Sequence[Chunk]) -> None:
        """Notes that ``bank`` (counted from 0, ascending) holds a document.

        Raises InputError where another bank holds other content under its id and none is preferred,
        CorruptError where the bank itself holds the id twice.
        """
        key, content = _key(document), self._content(document, chunks)
        added = self._database.execute(
            "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?, ?)", (key, content, bank, bank, _ALONE)
        )
        if added.rowcount == 1:
            return
        before, owner, latest, state = self._row(key) or (content, bank, bank, _ALONE)
        if latest == bank:
            raise CorruptError(f"{self._names[bank]}: holds the document {document.id[:200]!r} twice")
        if content != before:
            if self._prefer is None:
                raise InputError(
                    f"{self._names[owner]} and {self._names[bank]} hold different documents under the id "
                    f"{document.id[:200]!r}: choose with --prefer first or --prefer last, or compile them "
                    "with ids that differ (from a common parent directory, or with --id-field)"
                )
            state = _CONTESTED
        elif state == _ALONE:
            state = _SHARED
        if self._prefer == "last":
            owner, before = bank, content
        self._database.execute(
            "UPDATE claims SET content = ?, bank = ?, latest = ?, state = ? WHERE id = ?",
            (before, owner, bank, state, key),
        )

    def takes(self, bank: int, document: DocumentRow) -> bool:
        """Whether to take this document from ``bank``: of equal ones the first that is asked for, of
        different ones that of the preferred bank, none that was not entered. To be asked once for each
        document of each bank."""
        key = _key(document)
        found = self._row(key)
        if found is None:
            return False
        _, owner, _, state = found
        if state == _ALONE:
            return True
        if state == _CONTESTED:
            self.replaced += owner != bank
            return owner == bank
        if state == _TAKEN:
            self.shared += 1
            return False
        self._database.execute("UPDATE claims SET state = ? WHERE id = ?", (_TAKEN, key))
        return True

    def _row(self, key: bytes) -> tuple[bytes, int, int, int] | None:
        found: tuple[bytes, int, int, int] | None = self._database.execute(
            "SELECT content, bank, latest, state FROM claims WHERE id = ?", (key,)
        ).fetchone()
        return found

    def _content(self, document: DocumentRow, chunks: Sequence[Chunk]) -> bytes:
        """Hash of what makes a document: text, title, metadata and how it was cut. Where it stood in its
        source does not count."""
        parts = [document.title.encode(), document.metadata.encode()]
        if self._compare_chunks:
            for chunk in chunks:
                parts += [b"%d %d" % (chunk.start, chunk.end), chunk.title.encode()]
        found = hashlib.blake2b(document.sha256, digest_size=16)
        for part in parts:
            found.update(b"%d:" % len(part) + part)
        return found.digest()


def _key(document: DocumentRow) -> bytes:
    return hashlib.blake2b(document.id.encode(), digest_size=16).digest()
