"""What the processes of the concurrency row do."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import BusyError
from m3build_formats.evaluation_file import write_evaluation
from m3build_formats.gc import collect
from m3build_formats.manifest import Manifest
from m3build_formats.verify import verify

ROWS: Final = (9, 4)
PATIENCE: Final = 600.0
"""Seconds after which something hangs."""


@dataclass(frozen=True)
class Seen:
    """What a reader saw: how often it opened the current version, and what was wrong."""

    opened: int
    newest: int
    wrong: list[str]


def commit_often(bank: Path, worker: int, commits: int) -> int:
    """Adds ``commits`` entries to the sources of the current version, one a version; returns how often it was
    told to try again. Even workers wait for the lock, odd ones start from a version that may be stale."""
    busy, random = 0, Random(worker)
    for number in range(commits):
        while True:
            try:
                if worker % 2:
                    base = read_manifest(bank)
                    with BankWriter(bank) as writer:
                        _add(writer, f"{worker}-{number}", base)
                else:
                    with BankWriter(bank, wait_seconds=PATIENCE) as writer:
                        _add(writer, f"{worker}-{number}", read_manifest(bank))
                break
            except BusyError:
                busy += 1
                time.sleep(random.random() / 100)
    return busy


def _add(writer: BankWriter, name: str, base: Manifest) -> None:
    sources = {**base.sources, name: base.version + 1}
    writer.commit(replace(base.contents, operation=name, sources=sources), base)


def read_often(bank: Path, stop: Path, also_verify: bool) -> Seen:
    """Opens the current version and reads all of it until the file ``stop`` is there."""
    opened, newest, wrong = 0, 0, []
    while not stop.exists() or not opened:
        try:
            with open_bank(bank) as found:
                version = found.manifest.version
                added = sorted(value for value in found.manifest.sources.values() if isinstance(value, int))
                if added != list(range(2, version + 1)):
                    wrong.append(f"version {version} has the sources of {len(added)} commits")
                if version < newest:
                    wrong.append(f"version {version} after version {newest}")
                rows = sum(len(list(shard.chunks())) for shard in found.shards)
                if rows != sum(ROWS):
                    wrong.append(f"version {version} has {rows} rows")
                opened, newest = opened + 1, max(newest, version)
            if also_verify and not (report := verify(bank, "quick", version=newest)).ok:
                wrong.append(str(report.problems[0]))
        except Exception as error:  # noqa: BLE001 (a reader must never see one)
            wrong.append(f"{type(error).__name__}: {error}")
    return Seen(opened, newest, wrong[:5])


def collect_often(bank: Path, stop: Path) -> int:
    """Removes all versions but three, again and again; returns how many went."""
    removed = 0
    while not stop.exists():
        with contextlib.suppress(BusyError):
            removed += len(collect(bank, keep=3, grace=0).removed)
        time.sleep(0.02)
    return removed


def commit_files_forever(bank: Path) -> None:
    """Commits version after version, each with a file of its own, until it is killed."""
    for number in count():
        with BankWriter(bank, wait_seconds=PATIENCE) as writer:
            base = read_manifest(bank)
            evaluation = write_evaluation(writer, {"pid": os.getpid(), "number": number, "pad": "x" * 9999})
            files = replace(base.files, eval=evaluation)
            writer.commit(replace(base.contents, operation="by the one killed", files=files), base)


def fork(work: Callable[[], object]) -> int:
    """The id of a child process that does ``work`` and ends without any handler of the parent's."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)
