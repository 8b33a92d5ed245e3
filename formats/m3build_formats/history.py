"""The versions of a bank, one small record each: what `m3build log` shows.

Needs the standard library only. Manifests may be large, so they are read one at a time and only what a record
needs of them is kept. A version whose manifest cannot be read has a record too, which says why.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from m3build_formats.bank import Versions
from m3build_formats.canonical_json import canonical_json
from m3build_formats.errors import M3Error, ResourceError, UsageError
from m3build_formats.manifest import BaseVersion, Manifest, VersionContents

ROLLBACK: Final = "rollback"


@dataclass(frozen=True, slots=True)
class Change:
    """How a version's counts differ from its base's; bytes are those of all data files, each counted once."""

    documents: int
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Version:
    """A version. ``created`` is UTC in ISO 8601, ``chunks`` counts rows, ``bytes`` the data files that it
    names, ``sha256`` pins it.

    ``change`` is None where there is nothing to compare with: ``base`` is None, is no longer there, cannot be
    read or is not the version of that number that is there. ``restores`` is the newest older version with the
    same contents, for a rollback.
    """

    version: int
    sha256: str
    created: str
    operation: str
    documents: int
    chunks: int
    bytes: int
    base: BaseVersion | None
    change: Change | None
    restores: int | None

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        base, change = self.base, self.change
        return {
            "version": self.version,
            "sha256": self.sha256,
            "created": self.created,
            "operation": self.operation,
            "documents": self.documents,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "base": {"version": base.version, "sha256": base.sha256} if base else None,
            "change": {item.name: getattr(change, item.name) for item in fields(change)} if change else None,
            "restores": self.restores,
        }


@dataclass(frozen=True, slots=True)
class UnreadableVersion:
    """A version whose manifest is damaged, of a newer format, or cannot be read; ``error`` says which."""

    version: int
    error: M3Error

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return {"version": self.version, "problem": str(self.error)}


@dataclass(frozen=True, slots=True)
class _Summary:
    """What is kept of a manifest: the same whatever its size."""

    sha256: str
    created: str
    operation: str
    documents: int
    chunks: int
    bytes: int
    base: BaseVersion | None
    contents: str


def versions(
    path: str | os.PathLike[str], limit: int | None = None
) -> tuple[Version | UnreadableVersion, ...]:
    """The versions of a bank, newest first; at most the ``limit`` newest.

    Manifests beyond the limit are read only where a base or what a rollback restored lies there. The newest
    is there in any case: where a garbage collection removes it meanwhile, it is no longer the newest, and all
    is looked at anew. Raises UsageError where ``path`` is no bank or has no version yet, ResourceError where
    versions/ or a manifest in it cannot be read.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"ask for at least 1 version, not {limit}")
    with Versions(path) as listed:
        while True:
            numbers = listed.numbers()[::-1]
            if not numbers:
                raise UsageError(f"{os.fspath(path)}: the bank has no version yet; run m3build compile")
            reader = _Reader(listed, numbers)
            found = [reader.record(number) for number in numbers[:limit]]
            if found[0] is not None:
                return tuple(record for record in found if record is not None)
            if numbers[0] in listed.numbers():
                raise ResourceError(f"{os.fspath(path)}: lists version {numbers[0]}, but does not give it")


def contents_digest(contents: VersionContents) -> str:
    """A hash that is equal for versions that hold the same, whatever made them."""
    small = {
        item.name: getattr(contents, item.name)
        for item in fields(VersionContents)
        if item.name not in ("operation", "shards", "files")
    }
    # A file's name is its hash, so what the entries say beyond it follows from it.
    small["files"] = [[kind, entry.name] for kind, entry in contents.files.files()]
    small["shards"] = [[entry.name for _, entry in shard.files()] for shard in contents.shards]
    return hashlib.sha256(canonical_json(small).encode()).hexdigest()


def same_contents(one: VersionContents, other: VersionContents) -> bool:
    """Whether two versions hold the same, whatever made them."""

    def plain(version: VersionContents) -> VersionContents:
        contents = version.contents if isinstance(version, Manifest) else version
        return replace(contents, operation="")

    return plain(one) == plain(other)


class _Reader:
    """Summaries by number, each manifest read once. None where it is no longer there."""

    def __init__(self, listed: Versions, numbers: Sequence[int]) -> None:
        self._listed = listed
        self._numbers = numbers
        self._there = frozenset(numbers)
        self._read: dict[int, _Summary | M3Error | None] = {}

    def record(self, number: int) -> Version | UnreadableVersion | None:
        found = self._summary(number)
        if found is None:
            return None
        if isinstance(found, M3Error):
            return UnreadableVersion(number, found)
        return Version(
            version=number,
            sha256=found.sha256,
            created=found.created,
            operation=found.operation,
            documents=found.documents,
            chunks=found.chunks,
            bytes=found.bytes,
            base=found.base,
            change=self._change(found),
            restores=self._restored(number, found) if found.operation == ROLLBACK else None,
        )

    def _change(self, found: _Summary) -> Change | None:
        base = self._summary(found.base.version) if found.base else None
        if not isinstance(base, _Summary) or found.base is None or base.sha256 != found.base.sha256:
            return None
        return Change(found.documents - base.documents, found.chunks - base.chunks, found.bytes - base.bytes)

    def _restored(self, number: int, found: _Summary) -> int | None:
        for older in self._numbers[self._numbers.index(number) + 1 :]:
            other = self._summary(older)
            if isinstance(other, _Summary) and other.contents == found.contents:
                return older
        return None

    def _summary(self, number: int) -> _Summary | M3Error | None:
        if number in self._there and number not in self._read:
            try:
                manifest = self._listed.read(number)
                self._read[number] = _summary_of(manifest) if manifest is not None else None
            except M3Error as error:
                # Tracebacks would keep the bytes of the manifest.
                error.__cause__ = error.__context__ = None
                self._read[number] = error.with_traceback(None)
        return self._read.get(number)


def _summary_of(manifest: Manifest) -> _Summary:
    return _Summary(
        sha256=manifest.sha256,
        created=manifest.created,
        operation=manifest.operation,
        documents=manifest.counts["documents"],
        chunks=manifest.counts["chunks"],
        bytes=sum(entry.bytes for _, entry in manifest.all_files().values()),
        base=manifest.base,
        contents=contents_digest(manifest),
    )
