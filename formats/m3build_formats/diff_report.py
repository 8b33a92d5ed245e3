"""What `diff` found, for programs and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Listed:
    """How many there are, and the ids of the first of them, as many as were asked for."""

    total: int = 0
    ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"total": self.total, "ids": list(self.ids)}


@dataclass(frozen=True, slots=True)
class DocumentChanges:
    """Documents by id, in the order of the bank. ``changed`` ones have another text or other chunks;
    ``other_metadata`` counts those that differ in title, source or metadata alone."""

    added: Listed = Listed()
    removed: Listed = Listed()
    changed: Listed = Listed()
    other_metadata: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "added": self.added.to_json(),
            "removed": self.removed.to_json(),
            "changed": self.changed.to_json(),
            "other_metadata": self.other_metadata,
        }


@dataclass(frozen=True, slots=True)
class ChunkChanges:
    """Distinct texts that only one side has, by id in hex, ascending. ``encoded_anew`` counts rows of shards
    whose texts are the same on both sides and whose memories are not."""

    added: Listed = Listed()
    removed: Listed = Listed()
    encoded_anew: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "added": self.added.to_json(),
            "removed": self.removed.to_json(),
            "encoded_anew": self.encoded_anew,
        }


@dataclass(frozen=True, slots=True)
class Setting:
    """A value in the manifest that differs: its path (``codec.spec``) and both values, None where a side has
    none."""

    path: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True)
class Sharing:
    """Data files and their bytes: of each side, and those that both name."""

    files_before: int
    files_after: int
    files_shared: int
    bytes_before: int
    bytes_after: int
    bytes_shared: int

    def to_json(self) -> dict[str, Any]:
        return {
            "files": {"before": self.files_before, "after": self.files_after, "shared": self.files_shared},
            "bytes": {"before": self.bytes_before, "after": self.bytes_after, "shared": self.bytes_shared},
        }


@dataclass(frozen=True, slots=True)
class Side:
    """A version that was compared: the path of its bank and the facts that ``m3build info --json`` prints
    (`info.describe`)."""

    bank: str
    facts: Mapping[str, Any]

    @property
    def version(self) -> int:
        number: int = self.facts["version"]
        return number

    def to_json(self) -> dict[str, Any]:
        return {"bank": self.bank, **self.facts}


@dataclass(frozen=True, slots=True)
class Difference:
    """How two versions differ. ``before`` is None for a first version, which is compared with nothing.
    ``same``: both hold the same, whatever made them."""

    before: Side | None
    after: Side
    same: bool
    documents: DocumentChanges
    chunks: ChunkChanges
    settings: tuple[Setting, ...]
    sharing: Sharing

    def to_json(self) -> dict[str, Any]:
        """The difference as one JSON object."""
        return {
            "before": self.before.to_json() if self.before else None,
            "after": self.after.to_json(),
            "same": self.same,
            "documents": self.documents.to_json(),
            "chunks": self.chunks.to_json(),
            "settings": [setting.to_json() for setting in self.settings],
            "sharing": self.sharing.to_json(),
        }
