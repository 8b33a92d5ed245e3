"""``compile --reproduce``: builds a bank again, elsewhere, and says what comes out otherwise.

The new build takes options, codec and embedder from the bank and nothing else: no memory, no piece. So equal
bytes show that the sources, the model and this machine give the bank.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from m3build.config import CompileOptions, RunOptions, resolve
from m3build.pipeline.build import compile_bank
from m3build.pipeline.codec_stage import codec_is_open
from m3build.progress import Progress
from m3build_formats.bank import read_manifest
from m3build_formats.errors import UsageError
from m3build_formats.manifest import Manifest, ShardEntry

_PARTS = ("chunks", "documents_file", "memories", "embeddings", "index")


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Whether building again gave the same bytes; ``differences`` in words, ``libraries`` by name with the
    versions then and now, where these are not equal."""

    bank: str
    version: int
    differences: tuple[str, ...]
    libraries: dict[str, tuple[str | None, str | None]]
    encoded: int
    seconds: float

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "bank": self.bank,
            "version": self.version,
            "identical": self.identical,
            "differences": list(self.differences),
            "libraries": {name: list(pair) for name, pair in self.libraries.items()},
            "encoded": self.encoded,
            "seconds": round(self.seconds, 3),
        }


def reproduce(
    sources: Sequence[str],
    bank: str | os.PathLike[str],
    options: CompileOptions,
    run: RunOptions,
    progress: Progress | None = None,
    standard_input: BinaryIO | None = None,
) -> Reproduction:
    """Build the current version of ``bank`` again from ``sources``, in a directory beside it that is removed.

    Raises MismatchError where options or model are not the bank's, UsageError for options that ask for
    another bank, and what ``compile_bank`` raises.
    """
    if run.rebuild or run.retrain or run.readmit or run.codec_from or run.embedder_from:
        raise UsageError(
            "--reproduce builds what the bank holds: it goes without --rebuild, --retrain, --readmit, "
            "--codec-from and --embedder-from"
        )
    old = read_manifest(bank)
    settings = resolve(options, old.sources.get("settings"), rebuild=False)
    asked = CompileOptions(**{name: getattr(settings, name) for name in CompileOptions.__dataclass_fields__})
    path = Path(bank)
    given = replace(
        run,
        codec_from=None if codec_is_open(old) else os.fspath(bank),
        embedder_from=os.fspath(bank) if old.files.embedder else None,
    )
    with tempfile.TemporaryDirectory(prefix=".m3build-reproduce-", dir=path.resolve().parent) as place:
        made = compile_bank(sources, Path(place) / "bank", asked, given, progress, standard_input)
    now, then = made.manifest.libraries, old.libraries
    return Reproduction(
        bank=os.fspath(bank),
        version=old.version,
        differences=tuple(_differences(old, made.manifest)),
        libraries={
            name: (then.get(name), now.get(name))
            for name in sorted({*then, *now})
            if then.get(name) != now.get(name)
        },
        encoded=made.encoded,
        seconds=made.seconds,
    )


def _differences(old: Manifest, new: Manifest) -> list[str]:
    """In words, data files by their names, which are hashes of their bytes."""
    found = []
    if old.model.get("fingerprint") != new.model.get("fingerprint"):
        found.append("the model is another one")
    for name in sorted({*old.counts, *new.counts}):
        before, after = old.counts.get(name, 0), new.counts.get(name, 0)
        # Memories that were made at first retrieval are not of the build.
        if before != after and name != "cold":
            found.append(f"{name}: {before:,} in the bank, {after:,} now")
    if len(old.shards) != len(new.shards):
        found.append(f"shards: {len(old.shards)} in the bank, {len(new.shards)} now")
    for number, (one, other) in enumerate(zip(old.shards, new.shards, strict=False)):
        if parts := _parts(one, other, old.cold > 0 or new.cold > 0):
            found.append(f"shard {number}: other {', '.join(parts)}")
    return found + [
        f"another {kind} file"
        for kind in ("codec", "embedder", "rejects")
        if getattr(old.files, kind) != getattr(new.files, kind)
    ]


def _parts(one: ShardEntry, other: ShardEntry, is_cold: bool) -> list[str]:
    return [
        part.removesuffix("_file")
        for part in _PARTS
        if getattr(one, part) != getattr(other, part) and not (is_cold and part == "memories")
    ]
