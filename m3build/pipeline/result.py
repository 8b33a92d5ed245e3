"""What a build did, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m3build.pipeline.drift_report import Drift
from m3build.records import Reject
from m3build_formats.info import describe
from m3build_formats.manifest import Manifest


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage: seconds it took and units it handled."""

    name: str
    seconds: float
    done: int
    unit: str


@dataclass(frozen=True, slots=True)
class CompileResult:
    """The outcome of ``compile``: the version that is current now, and what the build did for it.

    ``changed`` is false when sources and options gave the version that was there already. ``repaired`` names
    the data files of the version before that were missing or damaged and were made anew. ``cut`` documents
    went through the tokenizer, the others were known from an earlier build. ``encoded`` references went
    through the model, ``reused`` ones were copied from the bank, ``repeated`` ones from an earlier shard of
    this build. ``rejects`` holds the first few. ``drift`` says how well the codec and embedder that were kept
    fit what is new; None where nothing was measured.
    """

    bank: str
    manifest: Manifest
    changed: bool
    repaired: tuple[str, ...]
    cut: int
    encoded: int
    reused: int
    repeated: int
    stages: tuple[StageTime, ...]
    rejects: tuple[Reject, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    drift: Drift | None = None

    @property
    def version(self) -> int:
        """Number of the current version."""
        return self.manifest.version

    def to_json(self) -> dict[str, Any]:
        """The outcome as one JSON object, with the facts of ``info --json`` under ``info``."""
        return {
            "bank": self.bank,
            "version": self.version,
            "sha256": self.manifest.sha256,
            "changed": self.changed,
            "repaired": list(self.repaired),
            "cut": self.cut,
            "encoded": self.encoded,
            "reused": self.reused,
            "repeated": self.repeated,
            "drift": self.drift.to_json() if self.drift else None,
            "seconds": round(self.seconds, 3),
            "stages": [
                {"name": s.name, "seconds": round(s.seconds, 3), "done": s.done, "unit": s.unit}
                for s in self.stages
            ],
            "rejects": [
                {"source": r.source, "where": r.where, "reason": r.reason, "kind": r.kind}
                for r in self.rejects
            ],
            "notes": list(self.notes),
            "info": describe(self.manifest),
        }
