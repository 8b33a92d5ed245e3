"""SHA-256 of files, remembered from one build to the next, so that what is unchanged need not be read.

A file counts as unchanged while its size and its times of modification and of change are those that it had
when it was hashed (the latter since tools that unpack archives often set the former to a fixed date). One
that was written within the last seconds before it was hashed is read again next time: it could have changed
since without its times telling, as their grain is up to two seconds. A checkout that resets times costs
reading all files once, and no more, since what counts in the end is the content.

The table lies in a SQLite file under build/ and holds no names: it is keyed by a hash of the path. It is
scratch; a damaged one is begun anew.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

_GRAIN_NS: Final = 2_000_000_000
_HASHED_A_TRANSACTION: Final = 256

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a file without reading it."""

    bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class FileHash:
    """Hex digest of a file's bytes, and the stamp that it had then; without one, ``sha256`` tells why the
    file could not be read."""

    sha256: str
    stamp: Stamp | None

    def still_holds(self, path: str) -> bool:
        """Whether the file has the stamp of when it was hashed."""
        return _stamp(path) == self.stamp


class FileHashes:
    """The table of hashes in ``path``; with ``rehash`` nothing in it is believed. A context manager.

    ``read`` counts the files that had to be read.
    """

    def __init__(self, path: Path, rehash: bool = False) -> None:
        self._path = path
        self._rehash = rehash
        self._database = _opened(path)
        self._pending = 0
        self.read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(sqlite3.Error):
            self._database.commit()
        self._database.close()

    def of(self, path: str) -> FileHash:
        """The hash of a file: the one in the table if the file is unchanged since, else that of its bytes. A
        file that cannot be read hashes as its error, for its reader will say so.
        """
        stamp = _stamp(path)
        if stamp is not None and not self._rehash and (known := self._find(path, stamp)) is not None:
            return FileHash(known, stamp)
        self.read += 1
        began = time.time_ns()
        try:
            with open(path, "rb", buffering=0) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return FileHash(f"unreadable {error.errno}", None)
        if stamp is not None and max(stamp.modified_ns, stamp.changed_ns) < began - _GRAIN_NS:
            self._put(path, stamp, found)
        return FileHash(found, stamp)

    def forget_others(self) -> None:
        """Drop what was not asked for through this object, so that the table does not grow."""
        self._run(lambda: self._database.execute("DELETE FROM hashes WHERE seen = 0"))

    def _find(self, path: str, stamp: Stamp) -> str | None:
        def look() -> str | None:
            key = _key(path)
            row = self._database.execute(
                "SELECT bytes, modified, changed, sha256 FROM hashes WHERE path = ?", [key]
            )
            if (found := row.fetchone()) is None or Stamp(*found[:3]) != stamp:
                return None
            self._database.execute("UPDATE hashes SET seen = 1 WHERE path = ?", [key])
            return str(found[3])

        return self._run(look)

    def _put(self, path: str, stamp: Stamp, sha256: str) -> None:
        def store() -> None:
            self._database.execute(
                "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, 1)",
                [_key(path), stamp.bytes, stamp.modified_ns, stamp.changed_ns, sha256],
            )
            self._pending += 1
            if self._pending >= _HASHED_A_TRANSACTION:
                self._database.commit()
                self._pending = 0

        self._run(store)

    def _run(self, action: Callable[[], _Result]) -> _Result | None:
        try:
            return action()
        except sqlite3.DatabaseError:
            # Whatever is wrong with scratch, it is not worth a build.
            self._database.close()
            self._database = _begun_anew(self._path)
            return None


def _opened(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError:
        return _begun_anew(path)


def _begun_anew(path: Path) -> sqlite3.Connection:
    try:
        path.unlink(missing_ok=True)
        return _connect(path)
    except (OSError, sqlite3.DatabaseError):
        return _connect(Path(":memory:"))


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS hashes (path BLOB PRIMARY KEY, bytes INTEGER, modified INTEGER, "
            "changed INTEGER, sha256 TEXT, seen INTEGER) WITHOUT ROWID"
        )
        database.execute("UPDATE hashes SET seen = 0 WHERE seen = 1")
    except BaseException:
        database.close()
        raise
    return database


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _key(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).digest()[:16]
