"""Decides what a collection removes, by looking only: which versions stay, what they reach, what the rest is.

What a kept version reaches must be known, so a damaged one stops everything. Only regular files with names
that m3build gives are ever chosen for removal; whatever else lies there is foreign.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from m3build_formats.atomic import open_directory, resource_errors
from m3build_formats.bank import manifest_name, read_manifest
from m3build_formats.errors import CorruptError, NewerFormatError
from m3build_formats.layout import (
    BUILD_DIRECTORY,
    DATA_DIRECTORY,
    LOCK_FILE,
    MANIFEST_NAME,
    SUFFIXES,
    TEMPORARY_PREFIX,
    VERSIONS_DIRECTORY,
)
from m3build_formats.manifest import Manifest
from m3build_formats.trained_on import KINDS, Kind, Lineage, Training, judge, trainer_of

_DATA_NAME: Final = re.compile(
    rf"[0-9a-f]{{64}}\.(?:{'|'.join(map(re.escape, SUFFIXES.values()))})", re.ASCII
)
_TOP_LEVEL: Final = frozenset({VERSIONS_DIRECTORY, DATA_DIRECTORY, BUILD_DIRECTORY, LOCK_FILE})


@dataclass(frozen=True, slots=True)
class Doomed:
    """A file that goes: its name in its directory, its size in bytes, and how many names it has on the
    disk."""

    name: str
    bytes: int
    names: int


@dataclass(slots=True)
class Plan:
    """Versions by number, ascending; ``foreign`` are paths below the bank. See `gc.GcReport`."""

    kept: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    grace_versions: list[int] = field(default_factory=list)
    manifests: list[Doomed] = field(default_factory=list)
    files: list[Doomed] = field(default_factory=list)
    build: list[Doomed] = field(default_factory=list)
    grace_files: int = 0
    shared_files: int = 0
    foreign: list[str] = field(default_factory=list)
    training: dict[Kind, Training] = field(default_factory=dict)


def make_plan(path: str, keep: int, young_since: float | None, *, purge: bool) -> Plan:
    """What to remove of the bank at ``path`` if the newest ``keep`` versions stay.

    ``young_since`` is the time (seconds of the epoch) after which the grace period spares things, None
    without one; ``purge`` also lists build/ and judges codec and embedder. Raises
    CorruptError (a manifest among the newest is damaged), NewerFormatError (what is to stay cannot be
    understood), ResourceError.
    """
    plan = Plan()
    with resource_errors(f"cannot look at {path}"):
        reachable, known = _choose_versions(path, keep, young_since, plan)
        for entry, found in _listed(path, DATA_DIRECTORY):
            if entry in reachable or _is_temporary(entry, found):
                continue
            if not (stat.S_ISREG(found.st_mode) and _DATA_NAME.fullmatch(entry)):
                plan.foreign.append(f"{DATA_DIRECTORY}/{entry}")
            elif young_since is not None and found.st_mtime > young_since:
                plan.grace_files += 1
            else:
                plan.files.append(_doomed(entry, found))
        plan.foreign += [name for name, _ in _listed(path) if name not in _TOP_LEVEL]
        if purge:
            plan.build += _below(os.path.join(path, BUILD_DIRECTORY))
    if purge:
        _look_at_shared(path, plan, reachable, known)
    return plan


def _choose_versions(
    path: str, keep: int, young_since: float | None, plan: Plan
) -> tuple[set[str], dict[int, Lineage]]:
    """Sorts the versions into kept and removed ones. Returns the names of the data files that kept ones
    reach, and the lineage of every readable version.

    The grace period spares a version that appeared in it, or whose successor did: until then it was current,
    and a reader may have its manifest and not yet its files.
    """
    manifests: dict[int, os.stat_result] = {}
    for name, found in _listed(path, VERSIONS_DIRECTORY):
        is_manifest = MANIFEST_NAME.fullmatch(name) is not None and int(name[:8]) > 0
        if is_manifest:
            manifests[int(name[:8])] = found
        if not _is_temporary(name, found) and not (is_manifest and stat.S_ISREG(found.st_mode)):
            plan.foreign.append(f"{VERSIONS_DIRECTORY}/{name}")
    numbers = sorted(manifests)
    newest = set(numbers[-keep:])
    reachable: set[str] = set()
    known: dict[int, Lineage] = {}
    for number, successor in zip(numbers, [*numbers, 0][1:], strict=True):
        appeared = [manifests[item].st_mtime for item in (number, successor) if item]
        guarded = number not in newest and young_since is not None and max(appeared) > young_since
        manifest = _read(path, number, number in newest, guarded)
        if manifest is not None:
            known[number] = Lineage.of(manifest)
            if guarded or number in newest:
                plan.kept.append(number)
                plan.grace_versions += [number] * guarded
                reachable.update(manifest.all_files())
                continue
        if stat.S_ISREG(manifests[number].st_mode):
            plan.removed.append(number)
            plan.unreadable += [number] * (manifest is None)
            plan.manifests.append(_doomed(manifest_name(number), manifests[number]))
    return reachable, known


def _read(path: str, number: int, newest: bool, guarded: bool) -> Manifest | None:
    """A manifest, or None for one that cannot be read and need not be."""
    try:
        return read_manifest(path, number)
    except NewerFormatError:
        if newest or guarded:
            raise
    except CorruptError as error:
        if newest:
            raise CorruptError(
                f"{path}: {error}. What this version reaches is unknown, so nothing was removed: restore the "
                "file from a copy of the bank, or give the version up (by m3build rollback where it is the "
                "current one, else by keeping fewer)"
            ) from error
    return None


def _look_at_shared(path: str, plan: Plan, reachable: set[str], known: dict[int, Lineage]) -> None:
    """Files that removed versions share with kept ones; what the current codec and embedder learnt from."""
    shared: set[str] = set()
    for number in plan.removed:
        if number in known:
            shared |= set(read_manifest(path, number).all_files()) & reachable
    plan.shared_files = len(shared)
    if not plan.kept:
        return
    current = read_manifest(path, plan.kept[-1])
    for kind in KINDS:
        trainer = trainer_of(kind, known[current.version], known)
        plan.training[kind] = (
            trainer
            if isinstance(trainer, Training)
            else judge(kind, read_manifest(path, trainer.version), current)
        )


def _is_temporary(name: str, found: os.stat_result) -> bool:
    """Whether this is what a dead writer left: taking the writer lock removes it."""
    return name.startswith(TEMPORARY_PREFIX) and stat.S_ISREG(found.st_mode)


def _listed(path: str, directory: str | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Names in the bank or one of its directories, sorted, with what they are; links are not followed."""
    bank = open_directory(path, follow=True)
    try:
        descriptor = open_directory(directory, bank) if directory else os.dup(bank)
    finally:
        os.close(bank)
    try:
        for name in sorted(os.listdir(descriptor)):
            yield name, os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    finally:
        os.close(descriptor)


def _below(directory: str) -> Iterator[Doomed]:
    """All files below a directory that may be missing; links are not followed."""
    for folder, _, names, descriptor in os.fwalk(directory):
        for name in names:
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            yield _doomed(os.path.join(folder, name), found)


def _doomed(name: str, found: os.stat_result) -> Doomed:
    return Doomed(name, found.st_size, found.st_nlink)
