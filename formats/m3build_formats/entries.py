"""What a manifest says of single files: their name, hash, size, and where their record batches lie.

Plain frozen dataclasses over checked JSON (`manifest_check` does the checking); standard library only.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3build_formats.layout import BATCH_DIGEST_BYTES, SUFFIXES

JSON = dict[str, Any]


class Packed(Sequence[Any]):
    """The ends or digests of a file's batches. A large bank has hundreds of thousands of batches, and as
    Python objects these would take five times the memory."""

    __slots__ = ("_bytes",)
    _each = 8

    def __init__(self, packed: bytes) -> None:
        self._bytes = packed

    def __len__(self) -> int:
        return len(self._bytes) // self._each

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return tuple(self[number] for number in range(*at.indices(len(self))))
        start = range(len(self))[at] * self._each
        return self._value(self._bytes[start : start + self._each])

    def __eq__(self, other: object) -> bool:
        return self._bytes == other._bytes if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return repr(tuple(self))

    @abstractmethod
    def _value(self, packed: bytes) -> Any: ...


class Ends(Packed):
    """Places in a file, as integers."""

    __slots__ = ()

    @classmethod
    def of(cls, ends: Sequence[int]) -> Ends:
        """Raises OverflowError for what is no place in a file."""
        return ends if isinstance(ends, cls) else cls(array("Q", ends).tobytes())

    def _value(self, packed: bytes) -> int:
        return int.from_bytes(packed, sys.byteorder)


class Digests(Packed):
    """Digests of 128 bits, as strings in hex."""

    __slots__ = ()
    _each = BATCH_DIGEST_BYTES

    @classmethod
    def of(cls, digests: Sequence[str]) -> Digests:
        """Raises ValueError for what is not hex."""
        return digests if isinstance(digests, cls) else cls(b"".join(map(bytes.fromhex, digests)))

    def _value(self, packed: bytes) -> str:
        return packed.hex()


@dataclass(frozen=True, slots=True)
class Batches:
    """Where the record batches of an Arrow file lie and what they hash to.

    ``rows`` in every batch but the last, which has the rest. The head (magic and schema message) is the first
    ``head_bytes``; batch i is the encapsulated message that ends at byte ``ends[i]`` and starts where the one
    before ends, the first where the head ends. Digests are the first 128 bits of the SHA-256 of these bytes,
    in hex.
    """

    rows: int
    head_bytes: int
    head_digest: str
    ends: Sequence[int]
    digests: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", Ends.of(self.ends))
        object.__setattr__(self, "digests", Digests.of(self.digests))

    def span(self, batch: int) -> tuple[int, int]:
        """First byte of a batch's message and the byte after its last."""
        return (self.ends[batch - 1] if batch else self.head_bytes), self.ends[batch]

    def to_json(self) -> JSON:
        return {
            "rows": self.rows,
            "head": {"bytes": self.head_bytes, "digest": self.head_digest},
            "ends": list(self.ends),
            "digests": list(self.digests),
        }


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A data file as a manifest names it. ``rows`` and ``batches`` are None where the kind has none."""

    name: str
    sha256: str
    bytes: int
    rows: int | None = None
    batches: Batches | None = None

    def to_json(self) -> JSON:
        return {
            "name": self.name,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "rows": self.rows,
            "batches": self.batches.to_json() if self.batches else None,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> FileEntry:
        """The entry that checked JSON holds (`manifest_check.file_entry_problems` finds what is wrong with
        unchecked JSON)."""
        batches = value["batches"]
        return FileEntry(
            name=value["name"],
            sha256=value["sha256"],
            bytes=value["bytes"],
            rows=value["rows"],
            batches=Batches(
                rows=batches["rows"],
                head_bytes=batches["head"]["bytes"],
                head_digest=batches["head"]["digest"],
                ends=batches["ends"],
                digests=batches["digests"],
            )
            if batches
            else None,
        )


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard: chunks, memories and embeddings hold the same ``rows`` in the same order; ``documents``
    counts rows of ``documents_file``."""

    rows: int
    documents: int
    chunks: FileEntry
    documents_file: FileEntry
    memories: FileEntry | None
    embeddings: FileEntry
    index: FileEntry

    def files(self) -> Iterator[tuple[str, FileEntry]]:
        """Kind and entry of each file of the shard."""
        for kind in ("chunks", "documents", "memories", "embeddings", "index"):
            entry: FileEntry | None = getattr(self, "documents_file" if kind == "documents" else kind)
            if entry is not None:
                yield kind, entry

    def to_json(self) -> JSON:
        return {
            "rows": self.rows,
            "documents": self.documents,
            "chunks": self.chunks.to_json(),
            "documents_file": self.documents_file.to_json(),
            "memories": self.memories.to_json() if self.memories else None,
            "embeddings": self.embeddings.to_json(),
            "index": self.index.to_json(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ShardEntry:
        return ShardEntry(
            rows=value["rows"],
            documents=value["documents"],
            chunks=FileEntry.from_json(value["chunks"]),
            documents_file=FileEntry.from_json(value["documents_file"]),
            memories=FileEntry.from_json(value["memories"]) if value["memories"] else None,
            embeddings=FileEntry.from_json(value["embeddings"]),
            index=FileEntry.from_json(value["index"]),
        )


@dataclass(frozen=True, slots=True)
class BankFileEntries:
    """The files that a version has once."""

    codec: FileEntry | None = None
    embedder: FileEntry | None = None
    rejects: FileEntry | None = None
    eval: FileEntry | None = None

    def files(self) -> Iterator[tuple[str, FileEntry]]:
        """Kind and entry of each file that is there."""
        for kind in ("codec", "embedder", "rejects", "eval"):
            entry: FileEntry | None = getattr(self, kind)
            if entry is not None:
                yield kind, entry

    def to_json(self) -> JSON:
        return {
            kind: entry.to_json() if (entry := getattr(self, kind)) else None
            for kind in ("codec", "embedder", "rejects", "eval")
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> BankFileEntries:
        return BankFileEntries(
            **{kind: FileEntry.from_json(entry) if entry else None for kind, entry in value.items()}
        )


def file_name(sha256: str, kind: str) -> str:
    """Name of a data file in data/."""
    return f"{sha256}.{SUFFIXES[kind]}"
