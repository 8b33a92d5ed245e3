"""Who a document is, independent of where it stands in its file and of how that file was cut into ranges.

The id of a document is, in this order: the value of ``--id-field``; the file's name, for a file that is one
document; else ``NAME#HASH``, HASH being 16 hex digits of a SHA-256 of what was taken over from the record:
text, title and kept fields, so that white space or the order of keys in a JSON line do not matter. Equal
records of a file are told apart by an ordinal: the second is ``NAME#HASH:2``.

An ordinal depends on all records before it, ranges do not know of each other, and a set of all ids would
grow with the corpus. So readers give ids without ordinals, and whoever brings the ranges together in
canonical order sends the documents through one ``IdRegistry``. It keeps 16 bytes per document in a private
temporary SQLite database, whose page cache is bounded and which spills to disk beyond it. (Ordinals go by
order, so that a copy added or taken away renames no other record.) The registry also finds ids that were
given twice, which would make two documents one: the second is a reject.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeVar

from m3build.records import Document, Reject

HASH_DIGITS = 16
# Full from some 15,000 ids on, so that larger corpora take no more. Eight times the cache was no faster: what
# does not fit into it lies in a file that the system caches.
_CACHE_KIB = 512
_HASHED = re.compile(rf"#[0-9a-f]{{{HASH_DIGITS}}}")


def content_hash(text: str, title: str, metadata: Mapping[str, object]) -> str:
    """Hash of a record's content, 16 hex digits. The text's UTF-8 comes behind the rest as canonical JSON
    and a zero byte, which JSON cannot hold.

    Raises UnicodeEncodeError if a string holds a lone surrogate.
    """
    rest = [title, metadata] if metadata else [title]
    head = json.dumps(rest, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(head.encode() + b"\0" + text.encode()).hexdigest()[:HASH_DIGITS]


class _Identified(Protocol):
    """What a registry looks at: a ``Document``, or a row that stands for one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def position(self) -> int: ...


Identified = TypeVar("Identified", bound=_Identified)


class IdRegistry:
    """All ids of a corpus so far, in bounded memory. Not for use from several threads. Close it, or use it
    as a context manager."""

    def __init__(self) -> None:
        # An empty name is SQLite's private temporary database: in memory up to the cache size, then in an
        # unlinked file.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE ids (id BLOB PRIMARY KEY, seen INTEGER NOT NULL) WITHOUT ROWID")
        # One transaction that is never committed: there is nothing to keep once the database is closed.
        self._database.execute("BEGIN")
        self._cursor = self._database.cursor()

    def __enter__(self) -> IdRegistry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the disk space back."""
        self._database.close()

    def count(self, document_id: str) -> int:
        """Notes an id and answers how often it has come, 1 for the first time."""
        key = hashlib.sha256(document_id.encode()).digest()[:16]
        # An insert that succeeds, as nearly all do, costs half of an upsert that returns the count.
        if self._cursor.execute("INSERT OR IGNORE INTO ids VALUES (?, 1)", (key,)).rowcount == 1:
            return 1
        self._cursor.execute("UPDATE ids SET seen = seen + 1 WHERE id = ?", (key,))
        return int(self._cursor.execute("SELECT seen FROM ids WHERE id = ?", (key,)).fetchone()[0])

    def admit(self, document: Identified) -> Identified | Reject:
        """The document with its final id, or a Reject if an earlier document holds the id it was given."""
        times = self.count(document.id)
        if times == 1:
            return document
        if document.id.startswith(document.source) and _HASHED.fullmatch(document.id, len(document.source)):
            return replace(document, id=f"{document.id}:{times}")
        return Reject(
            document.source,
            f"position {document.position}",
            f"the id {document.id!r} was given to an earlier document",
        )


def number_equals(found: Iterable[Document | Reject], registry: IdRegistry) -> Iterator[Document | Reject]:
    """Gives documents their final ids. ``found`` must come in canonical order: files by name, then the
    ranges of each in order."""
    for item in found:
        yield item if isinstance(item, Reject) else registry.admit(item)
