"""Whether a version's codec or embedder may have learnt from documents that have since left the bank.

A codebook entry that few vectors fell to can be one of them, and document frequencies count n-grams of texts
that may be gone. A take-down should know. Manifests alone are asked, so the answer has three values: "no"
only where they prove it, "may" where the version that trained the file held shards that are gone (another
edit of the shard looks the same), "unknown" where that version is gone itself or the file came from another
bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from m3build_formats.manifest import BaseVersion, Manifest

Kind = Literal["codec", "embedder"]
KINDS: Final[tuple[Kind, ...]] = ("codec", "embedder")
Answer = Literal["no", "may", "unknown"]

# What makes a new file of a kind: a merge takes the codec over and fits the embedder.
_TRAINED_BY: Final[dict[str, frozenset[str]]] = {
    "codec": frozenset({"compile", "persist"}),
    "embedder": frozenset({"compile", "merge"}),
}
# A training notes how many distinct references it could choose from. Counts up to here are compared with the
# rows of the largest shard; an embedder's sample is bounded far above.
_COMPARED_REFERENCES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is kept of a manifest to find out which version trained a file."""

    version: int
    sha256: str
    operation: str
    base: BaseVersion | None
    files: Mapping[str, str | None]
    own: Mapping[str, bool]

    @staticmethod
    def of(manifest: Manifest) -> Lineage:
        """The lineage of one version."""
        entries = {"codec": manifest.files.codec, "embedder": manifest.files.embedder}
        return Lineage(
            version=manifest.version,
            sha256=manifest.sha256,
            operation=manifest.operation,
            base=manifest.base,
            files={kind: entry.sha256 if entry else None for kind, entry in entries.items()},
            own={kind: _fits(manifest, kind) for kind in entries},
        )


@dataclass(frozen=True, slots=True)
class Training:
    """``left``: whether documents that a file was trained on have left the bank; ``version``: the version
    that trained it, where that can be told; ``reason`` says why, for people."""

    left: Answer
    version: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"trained_on_what_left": self.left, "version": self.version, "reason": self.reason}


def trainer_of(kind: Kind, current: Lineage, known: Mapping[int, Lineage]) -> Training | Lineage:
    """The version that trained the current file of a kind, or the answer where there is nothing to look at.

    ``known`` holds all readable versions by number. A version trained the file if it is the oldest that has
    it, the version it was made from is known to have another, and its own counts do not contradict.
    """
    digest = current.files[kind]
    if digest is None:
        return Training("no", None, f"the {kind} has nothing that is trained")
    first = min(
        (item for item in (*known.values(), current) if item.files[kind] == digest),
        key=lambda item: item.version,
    )
    base = known.get(first.base.version) if first.base else None
    if first.base and (base is None or base.sha256 != first.base.sha256):
        return Training("unknown", None, f"the version that trained the {kind} is no longer there")
    if first.operation not in _TRAINED_BY[kind] or not first.own[kind]:
        return Training("unknown", None, f"the {kind} was trained in another bank")
    return first


def judge(kind: Kind, trainer: Manifest, current: Manifest) -> Training:
    """The answer for a file that the version ``trainer`` trained and ``current`` still has."""
    gone = {shard.chunks.name for shard in trainer.shards} - {shard.chunks.name for shard in current.shards}
    if not gone:
        return Training("no", trainer.version, "every shard that it was trained on is still there")
    reason = (
        f"trained by version {trainer.version}, of which {len(gone)} of {len(trainer.shards)} shards of text "
        "have changed or left since"
    )
    few = current.codec.get("few_members")
    if kind == "codec" and type(few) is int:
        reason += f"; {few:,} of its centroids stand for fewer than three training vectors"
    return Training("may", trainer.version, reason)


def _fits(manifest: Manifest, kind: str) -> bool:
    """Whether the counts that a training left behind can be those of this version's references: there are at
    most as many distinct ones as rows, and at least as many as in its largest shard."""
    trained_on = manifest.codec.get("trained_on")
    codec = trained_on.get("corpus_references") if isinstance(trained_on, dict) else None
    seen = codec if kind == "codec" else manifest.embedder.get("sample_texts")
    if type(seen) is not int:
        return True
    largest = max((shard.rows for shard in manifest.shards), default=0)
    return min(largest, _COMPARED_REFERENCES) <= seen <= manifest.rows
