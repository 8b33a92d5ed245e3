"""Whether there is nothing to do, found out without reading sources or loading a model.

A build that ends well takes down under build/ what it was made from: settings, the files of the model, all
source files, versions of libraries, and what the version holds. The next build compares. Files count as
unchanged by size and times where these are known, else by content (``file_hashes``), so ``--rehash`` and a
fresh checkout read all files and still do nothing. The bank's own files are hashed each time: what a disk
spoils changes no times, and a build has to mend it. Whatever does not match, or is damaged or missing, only
means that the build runs: this record can save work and can decide nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from m3build.config import CompileOptions, RunOptions, Settings
from m3build.corpus import SourceFile
from m3build.model.device import choose_device, choose_dtype
from m3build.model.source import find_model
from m3build.pipeline.corpus_stage import SHOWN
from m3build.pipeline.file_hashes import FileHashes
from m3build.pipeline.ledger import piece_key
from m3build.pipeline.libraries import library_versions
from m3build.pipeline.notes import codec_note, exclusion_notes
from m3build.pipeline.result import CompileResult
from m3build.pipeline.sources_digest import SourcesDigest
from m3build.pipeline.watch import Watch
from m3build.records import Reject
from m3build_formats.bank import open_bank
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import DataDirectory
from m3build_formats.errors import M3Error
from m3build_formats.manifest import Manifest

RECORD: Final = "finished.json"
# What says how a version came to be, not what it holds; an evaluation is of what it holds.
_OF_THE_COMMIT: Final = ("version", "base", "created", "sha256", "operation", "libraries")


@dataclass(frozen=True, slots=True)
class _Looked:
    """The files that were compared to see that nothing changed, and how many of them had to be read."""

    files: int
    read: int
    excluded: Counter[str]


def is_asked_to_build(run: RunOptions) -> bool:
    """Whether an option asks for something that unchanged sources do not answer."""
    return run.rebuild or run.retrain or run.codec_from is not None or run.embedder_from is not None


def nothing_to_do(
    old: Manifest,
    settings: Settings,
    options: CompileOptions,
    run: RunOptions,
    files: Sequence[SourceFile],
    found: Sequence[Reject],
    bank: str | os.PathLike[str],
    watch: Watch,
) -> CompileResult | None:
    """The outcome where there is nothing to do; None where there may be."""
    with (
        BankWriter(bank) as writer,
        FileHashes(writer.build_directory / "hashes.sqlite", run.rehash) as hashes,
    ):
        looked = _look(old, settings, run, files, found, writer.build_directory, writer.data, hashes)
    if looked is None:
        return None
    watch.note(f"nothing changed: {looked.files:,} files looked at, {looked.read:,} of them read")
    for note in exclusion_notes(options.exclude or (), old.sources.get("settings"), looked.excluded, old):
        watch.note(note)
    if (of_codec := codec_note(old, settings)) is not None:
        watch.note(of_codec)
    return CompileResult(
        bank=os.fspath(bank),
        manifest=old,
        changed=False,
        repaired=(),
        cut=0,
        encoded=0,
        reused=old.rows - old.cold,
        repeated=0,
        stages=(),
        rejects=_first_rejects(bank, old),
        notes=tuple(watch.notes),
        seconds=watch.seconds,
    )


def contents_key(manifest: Manifest) -> str:
    """Hash of what a version holds, whichever version it is and whatever was measured of it."""
    value = dict(manifest.to_json())
    for name in _OF_THE_COMMIT:
        value.pop(name, None)
    value["files"] = {**value["files"], "eval": None}
    return piece_key("contents", value)


def setting_key(settings: Settings, run: RunOptions, hashes: FileHashes) -> str:
    """Hash of all but the sources that decides what a build makes. Raises the errors of finding the model."""
    directory = find_model(settings.model, trust_remote_code=run.trust_remote_code).directory
    device = choose_device(run.device)
    return piece_key(
        "inputs",
        {
            "settings": settings.to_json(),
            "model": [
                [path.name, hashes.of(os.fspath(path)).sha256]
                for path in sorted(directory.iterdir(), key=lambda path: path.name)
                if path.is_file()
            ],
            "device": device.type,
            "dtype": str(choose_dtype(settings.dtype, device)),
            "trust_remote_code": run.trust_remote_code,
            "max_rejects": run.max_rejects,
            "libraries": library_versions(),
        },
    )


def _look(
    old: Manifest,
    settings: Settings,
    run: RunOptions,
    files: Sequence[SourceFile],
    found: Sequence[Reject],
    build: Path,
    data: DataDirectory,
    hashes: FileHashes,
) -> _Looked | None:
    """The outcome where sources, settings and model are those of the build that made ``old``, and all files
    of ``old`` are whole; None where anything is not, or cannot be told.
    """
    record = _read(build / RECORD)
    if record is None or record.get("contents") != contents_key(old):
        return None
    try:
        if record.get("setting") != setting_key(settings, run, hashes):
            return None
    except M3Error:
        return None
    digest = SourcesDigest(found)
    before = hashes.read
    for file in files:
        digest.add(file, hashes.of(file.path).sha256)
    read = hashes.read - before
    if record.get("sources") != digest.hexdigest():
        return None
    if not all(data.is_sound(entry) for _, entry in old.all_files().values()):
        return None
    return _Looked(len(files), read, Counter(record.get("excluded") or {}))


def take_down(
    manifest: Manifest,
    settings: Settings,
    run: RunOptions,
    sources: str,
    excluded: Counter[str],
    build: Path,
    hashes: FileHashes,
) -> None:
    """Write the record of a build that ended with ``manifest``; ``sources`` is the digest of what it read."""
    record = {
        "contents": contents_key(manifest),
        "setting": setting_key(settings, run, hashes),
        "sources": sources,
        "excluded": dict(excluded),
    }
    temporary = build / f"{RECORD}.tmp"
    text = json.dumps(record)
    temporary.write_text(json.dumps({**record, "check": _check(text)}), encoding="utf-8")
    temporary.replace(build / RECORD)


def _read(path: Path) -> dict[str, Any] | None:
    """A record, or None for one that is not there or not as it was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        check = found.pop("check")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return found if check == _check(json.dumps(found)) else None


def _check(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first_rejects(bank: str | os.PathLike[str], manifest: Manifest) -> tuple[Reject, ...]:
    if manifest.files.rejects is None:
        return ()
    with open_bank(bank, version=manifest.version) as files:
        rows = (row for row in files.rejects() if row.kind == "reject")
        return tuple(Reject(row.source, row.where, row.reason) for row in islice(rows, SHOWN))
