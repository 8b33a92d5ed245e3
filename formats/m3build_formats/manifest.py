"""The manifest of a bank's version as frozen dataclasses, and its bytes.

Needs the standard library only: `m3build info` reads a manifest in milliseconds. A manifest file is the
canonical JSON of everything but its own digest, with the closing brace replaced by ``,"sha256":"<hex>"}`` and
a line feed. So the digest stands at a fixed place at the end, and is checked before any JSON is parsed and
without writing canonical JSON anew.

`VersionContents` is what a writer says about a version; a `Manifest` is that plus what the commit adds
(number, base, time, digest).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from m3build_formats.canonical_json import canonical_json, parse_json
from m3build_formats.entries import JSON, BankFileEntries, Batches, FileEntry, ShardEntry
from m3build_formats.errors import CorruptError, NewerFormatError
from m3build_formats.layout import FORMAT, FORMAT_VERSION, KNOWN_FEATURES
from m3build_formats.manifest_check import manifest_problems

_DIGEST_TAIL: Final = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n')
DIGEST_TAIL_BYTES: Final = len(b',"sha256":""}\n') + 64

__all__ = [
    "BankFileEntries",
    "BaseVersion",
    "Batches",
    "FileEntry",
    "Manifest",
    "ShardEntry",
    "VersionContents",
    "digest_of_tail",
    "parse_manifest",
]


@dataclass(frozen=True, kw_only=True)
class VersionContents:
    """What a version holds and all that shaped it. The JSON sections are free-form but for the keys that
    SPEC.md requires of them."""

    operation: str
    counts: Mapping[str, int]
    sources: Mapping[str, Any]
    chunker: Mapping[str, Any]
    model: Mapping[str, Any]
    memory: Mapping[str, Any]
    codec: Mapping[str, Any]
    embedder: Mapping[str, Any]
    index: Mapping[str, Any]
    libraries: Mapping[str, Any]
    code_key: str
    row_codes_bytes: int
    row_positions_bytes: int
    shards: tuple[ShardEntry, ...]
    files: BankFileEntries
    features: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def cold(self) -> int:
        """Rows that have no memory yet."""
        without = sum(shard.rows for shard in self.shards if shard.memories is None)
        return self.counts.get("cold", without)

    @property
    def row_bytes(self) -> int:
        """Width of a memory row."""
        return self.row_codes_bytes + self.row_positions_bytes

    def all_files(self) -> dict[str, tuple[str, FileEntry]]:
        """Each data file of the version once: name → (kind, entry)."""
        found = {entry.name: (kind, entry) for kind, entry in self.files.files()}
        for shard in self.shards:
            found.update((entry.name, (kind, entry)) for kind, entry in shard.files())
        return found


@dataclass(frozen=True, kw_only=True)
class BaseVersion:
    """The version that another was made from."""

    version: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(VersionContents):
    """A committed version. ``created`` is UTC in ISO 8601 with seconds and ``Z``; ``sha256`` the digest in
    hex that pins the version."""

    version: int
    base: BaseVersion | None
    created: str
    sha256: str = field(default="", compare=False)

    @property
    def contents(self) -> VersionContents:
        """What the version holds, without what its commit added."""
        return VersionContents(**{item.name: getattr(self, item.name) for item in fields(VersionContents)})

    def to_json(self) -> JSON:
        """The manifest as a JSON object without ``sha256``."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "features": list(self.features),
            "version": self.version,
            "base": {"version": self.base.version, "sha256": self.base.sha256} if self.base else None,
            "created": self.created,
            "operation": self.operation,
            "counts": dict(self.counts),
            "sources": dict(self.sources),
            "chunker": dict(self.chunker),
            "model": dict(self.model),
            "memory": dict(self.memory),
            "codec": dict(self.codec),
            "embedder": dict(self.embedder),
            "index": dict(self.index),
            "libraries": dict(self.libraries),
            "code_key": self.code_key,
            "row_bytes": {"codes": self.row_codes_bytes, "positions": self.row_positions_bytes},
            "shards": [shard.to_json() for shard in self.shards],
            "files": self.files.to_json(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], sha256: str = "") -> Manifest:
        """The manifest that a checked JSON object (without ``sha256``) holds."""
        base = value["base"]
        same = ("operation", "counts", "sources", "chunker", "model", "memory", "codec", "embedder", "index")
        return Manifest(
            **{key: value[key] for key in (*same, "libraries", "code_key", "version", "created")},
            row_codes_bytes=value["row_bytes"]["codes"],
            row_positions_bytes=value["row_bytes"]["positions"],
            shards=tuple(ShardEntry.from_json(shard) for shard in value["shards"]),
            files=BankFileEntries.from_json(value["files"]),
            features=tuple(value["features"]),
            base=BaseVersion(version=base["version"], sha256=base["sha256"]) if base else None,
            sha256=sha256,
        )

    def to_bytes(self) -> bytes:
        """The bytes of the manifest file, with the digest at their end."""
        body = canonical_json(self.to_json()).encode()
        digest = hashlib.sha256(body).hexdigest()
        return body[:-1] + f',"sha256":"{digest}"}}\n'.encode()


def digest_of_tail(tail: bytes) -> str:
    """The digest that the last `DIGEST_TAIL_BYTES` of a manifest state; raises ValueError where there is
    none."""
    match = _DIGEST_TAIL.fullmatch(tail)
    if match is None:
        raise ValueError("does not end with its SHA-256: it is cut off or is no manifest")
    return match[1].decode()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in ``data``; ``where`` names the file in messages.

    Raises CorruptError where digest, JSON or a field is wrong (all problems at once), NewerFormatError for an
    unknown format version or feature.
    """
    try:
        digest = digest_of_tail(data[-DIGEST_TAIL_BYTES:])
        body = data[:-DIGEST_TAIL_BYTES] + b"}"
        if hashlib.sha256(body).hexdigest() != digest:
            raise ValueError("its bytes do not have the SHA-256 that it ends with: the file is damaged")
        value = parse_json(body)
    except ValueError as error:
        raise CorruptError(f"{where}: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise CorruptError(f"{where}: is not the manifest of a bank ('format' is not {FORMAT!r})")
    _refuse_newer(value, where)
    if problems := manifest_problems(value):
        shown = "; ".join(map(str, problems[:5])) + (
            f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        )
        raise CorruptError(f"{where}: {shown}")
    return Manifest.from_json(value, digest)


def _refuse_newer(value: JSON, where: str) -> None:
    version, features = value.get("format_version"), value.get("features")
    if type(version) is int and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{where}: format version {version}, this m3build reads up to {FORMAT_VERSION}: upgrade m3build"
        )
    if isinstance(features, list):
        unknown = [
            feature for feature in features if not isinstance(feature, str) or feature not in KNOWN_FEATURES
        ]
        if unknown:
            # A name may hold anything, line feeds and terminal escapes too.
            shown = ", ".join(
                name if (name := str(feature)[:60]).isprintable() else repr(name) for feature in unknown[:5]
            )
            raise NewerFormatError(f"{where}: needs unknown features ({shown}): upgrade m3build")
