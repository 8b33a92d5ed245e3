"""What a merge did, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m3build.pipeline.result import StageTime
from m3build_formats.info import describe
from m3build_formats.manifest import Manifest


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The outcome of ``merge``.

    ``banks`` says what was merged: name, version, sha256 and documents of each bank. ``shared`` counts
    documents that a further bank held too, ``replaced`` those that gave way to another bank's of the same id.
    ``copied`` memories came from the banks, ``repeated`` ones from an earlier shard of the new bank.
    """

    bank: str
    manifest: Manifest
    banks: tuple[dict[str, Any], ...]
    shared: int
    replaced: int
    copied: int
    repeated: int
    stages: tuple[StageTime, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The outcome as one JSON object, with the facts of ``info --json`` under ``info``."""
        return {
            "bank": self.bank,
            "version": self.manifest.version,
            "sha256": self.manifest.sha256,
            "banks": list(self.banks),
            "shared_documents": self.shared,
            "replaced_documents": self.replaced,
            "copied": self.copied,
            "repeated": self.repeated,
            "seconds": round(self.seconds, 3),
            "stages": [
                {"name": s.name, "seconds": round(s.seconds, 3), "done": s.done, "unit": s.unit}
                for s in self.stages
            ],
            "notes": list(self.notes),
            "info": describe(self.manifest),
        }
