"""Whether banks can be merged without encoding anything again, and with which settings the result goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from m3build.config import CompileOptions, Settings, option_name, resolve
from m3build_formats.errors import MismatchError
from m3build_formats.manifest import Manifest

MODEL_FACTS: Final = ("fingerprint", "rope", "dtype", "device", "reference_bos_ids")
MEMORY_FACTS: Final = (
    "memory_layers",
    "memory_heads",
    "selection",
    "sparse_tokens",
    "reference_tokens",
)
# How sources were read shapes no stored memory; all else in the settings does.
READING: Final = (
    "text_field",
    "id_field",
    "title_field",
    "keep_fields",
    "encoding",
    "encoding_errors",
    "max_document_bytes",
)
# Of the libraries these made the memories; the others make files and index, in the merge itself.
MADE_MEMORIES: Final = ("torch", "transformers", "tokenizers", "machine", "cpu")
_ABSENT: Final = object()
_SHOWN: Final = 60


def refuse_other_facts(names: Sequence[str], manifests: Sequence[Manifest]) -> None:
    """Raises MismatchError for the first fact in which a bank differs from the first bank: both values, and
    how to make them equal. ``names`` are for messages."""
    ours = _facts(manifests[0])
    for name, manifest in zip(names[1:], manifests[1:], strict=True):
        theirs = _facts(manifest)
        for fact in {**ours, **theirs}:
            here, there = ours.get(fact, (None, "")), theirs.get(fact, (None, ""))
            if here[0] != there[0]:
                raise MismatchError(
                    f"{name} does not fit {names[0]}: {fact} is {_shown(here[0])} in {names[0]}, "
                    f"{_shown(there[0])} in {name}. Compile {name} anew with the {here[1] or there[1]} of "
                    f"{names[0]}: m3build compile SOURCES -o {name} --rebuild --codec-from {names[0]}"
                )


def merged_settings(manifests: Sequence[Manifest]) -> tuple[dict[str, Any], list[str]]:
    """The settings that a later ``compile`` of the merged bank starts from, as JSON: the first bank's, with
    all that any bank excludes, and of text only if any bank is. How sources are read is left to that
    ``compile`` where the banks differ; also returns the options that this concerns.
    """
    recorded = [dict(manifest.sources.get("settings") or {}) for manifest in manifests]
    merged = {"model": manifests[0].model["name"], **recorded[0]}
    differing = [
        name
        for name in READING
        if any(settings.get(name, _ABSENT) != recorded[0].get(name, _ABSENT) for settings in recorded)
    ]
    for name in differing:
        merged.pop(name, None)
    if any(settings.get("text_only") for settings in recorded):
        merged["text_only"] = True
    if excluded := {pattern for settings in recorded for pattern in settings.get("exclude", ())}:
        merged["exclude"] = sorted(excluded)
    return merged, [option_name(name) for name in differing]


def settings_of(merged: Mapping[str, Any], manifest: Manifest) -> Settings:
    """The settings as the stages take them; what the chunker facts of the first bank say goes first."""
    shaped = ("near_duplicates", "shard_chunks")
    facts = {name: manifest.chunker[name] for name in shaped if name in manifest.chunker}
    return resolve(CompileOptions(), {**merged, **facts}, rebuild=False)


def merged_libraries(manifests: Sequence[Manifest], here: Mapping[str, str]) -> dict[str, str]:
    """Library versions of a merged bank: those that made memories from the banks (all values where they
    differ, so that no one takes equal bytes for granted), the others from this process."""
    found = dict(here)
    for name in MADE_MEMORIES:
        values = sorted({str(manifest.libraries.get(name)) for manifest in manifests})
        found[name] = ", ".join(values)
    return found


def merged_counts(
    manifests: Sequence[Manifest],
    cut: Mapping[str, int],
    dropped: Mapping[str, int],
    excluded: int,
    cold: int,
) -> dict[str, int]:
    """The counts of a merged bank: of documents and chunks as they were ``cut``; what left no document adds
    up, but for rejects ``dropped`` by kind, and with what this merge ``excluded``; ``cold`` rows have no
    memory yet.
    """
    # Banks with the very same files were made of the same sources: what left no document there counts once.
    distinct = {frozenset(manifest.all_files()): manifest.counts for manifest in manifests}.values()
    counts = Counter[str]()
    for each in distinct:
        counts.update(each)
    for kind, name in (("reject", "rejects"), ("unsupported", "unsupported_files")):
        counts[name] = sum(manifest.counts[name] for manifest in manifests) - dropped.get(kind, 0)
    for name in ("documents", "chunks", "tokens", "characters", "duplicates"):
        counts[name] = cut.get(name, 0)
    counts["near_duplicates"] += cut.get("near_duplicates", 0)
    counts["excluded"] += excluded
    del counts["cold"]
    return {**counts, **({"cold": cold} if cold else {})}


def _facts(manifest: Manifest) -> dict[str, tuple[object, str]]:
    """Facts that must be equal, in the order in which they are looked at: their values, and what of a build
    sets them."""
    codec = manifest.files.codec
    return {
        **{f"model.{name}": (manifest.model.get(name), "model and device") for name in MODEL_FACTS},
        **{f"memory.{name}": (manifest.memory.get(name), "options for memory") for name in MEMORY_FACTS},
        **{
            f"chunker.{name}": (value, "options for chunks")
            for name, value in sorted(manifest.chunker.items())
        },
        "codec.spec": (manifest.codec["spec"], "codec"),
        "the codec file": (codec.sha256 if codec else None, "codec"),
        "row_bytes": ([manifest.row_codes_bytes, manifest.row_positions_bytes], "codec"),
        "code_key": (manifest.code_key, "model, options and codec"),
        "embedder.name": (manifest.embedder["name"], "embedder"),
    }


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
