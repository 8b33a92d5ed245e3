"""What a manifest says of single files: their name, hash, size, and where their record batches lie.

Plain frozen dataclasses over checked JSON (`manifest_check` does the checking); standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m3build_formats.layout import SUFFIXES

JSON = dict[str, Any]


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
    ends: tuple[int, ...]
    digests: tuple[str, ...]

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
                ends=tuple(batches["ends"]),
                digests=tuple(batches["digests"]),
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
