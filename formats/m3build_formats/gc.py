"""Removes versions that are no longer wanted, and the data files that only they need.

A crash at any point leaves every remaining manifest with all its files: manifests go first, oldest first, and
are gone for good (fsync of versions/) before the first data file goes.

The grace period is for readers who have read a manifest and not yet opened its files. It runs from the moment
when a version stopped being current, which is when the manifest after it appeared, however old its own is.
Readers who have opened their files keep them anyway.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from dataclasses import dataclass
from typing import Any, Final

from m3build_formats.atomic import open_directory, resource_errors, sync_directory
from m3build_formats.bank import list_versions
from m3build_formats.commit import BankWriter
from m3build_formats.errors import ResourceError, UsageError
from m3build_formats.gc_plan import Doomed, Plan, make_plan
from m3build_formats.layout import BUILD_DIRECTORY, DATA_DIRECTORY, TEMPORARY_PREFIX, VERSIONS_DIRECTORY
from m3build_formats.trained_on import Training

KEEP_VERSIONS: Final = 10
GRACE_SECONDS: Final = 3600.0
BEYOND_REACH: Final = (
    "backups, snapshots and copies of the bank",
    "readers that still hold files of the removed versions open",
    "blocks of the disk that are free now and not yet written over",
)
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])", re.ASCII)
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection removed (or would remove, in a dry run), and what it left and why.

    Versions are numbers, ascending; ``unreadable`` are those whose damaged manifest went too.
    ``bytes_freed`` counts data files, manifests and build/. ``grace_versions`` and ``grace_files`` were
    spared by the grace period. ``foreign`` are paths below the bank that m3build did not make; they are never
    removed. ``linked`` are removed files that have other names on the disk, where their contents live on.
    The rest is for a purge: files of removed versions that kept ones have too, and whether codec and embedder
    learnt from documents that have left.
    """

    bank: str
    purge: bool
    dry_run: bool
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    unreadable: tuple[int, ...]
    grace_versions: tuple[int, ...]
    files: int
    bytes_freed: int
    grace_files: int
    foreign: tuple[str, ...]
    linked: tuple[str, ...]
    shared_files: int = 0
    build_files: int = 0
    codec: Training | None = None
    embedder: Training | None = None
    beyond_reach: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        found: dict[str, Any] = {
            "bank": self.bank,
            "purge": self.purge,
            "dry_run": self.dry_run,
            "versions_kept": list(self.kept),
            "versions_removed": list(self.removed),
            "versions_unreadable": list(self.unreadable),
            "versions_kept_by_grace": list(self.grace_versions),
            "files_removed": self.files,
            "bytes_freed": self.bytes_freed,
            "files_kept_by_grace": self.grace_files,
            "foreign": list(self.foreign),
            "linked_elsewhere": list(self.linked),
        }
        if self.purge:
            found["files_shared_with_kept_versions"] = self.shared_files
            found["build_files_removed"] = self.build_files
            found["codec"] = self.codec.to_json() if self.codec else None
            found["embedder"] = self.embedder.to_json() if self.embedder else None
            found["beyond_reach"] = list(self.beyond_reach)
        return found


def collect(
    path: str | os.PathLike[str],
    *,
    keep: int | None = None,
    grace: str | float | None = None,
    purge: bool = False,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> GcReport:
    """Removes all but the newest ``keep`` versions (default 10) of a bank, and the files only they needed.

    ``grace`` ("30s", "15m", "1h", "7d", or seconds; default 1h) spares versions that were current, and files
    that were made, within it. ``purge`` is for a take-down: it keeps the current version alone, knows no
    grace, and empties build/. ``dry_run`` takes no lock and removes nothing; a build that runs beside it may
    change what it tells.

    Raises UsageError (no bank, options that contradict each other), BusyError (another process writes;
    ``wait_seconds`` waits for it), CorruptError (a manifest to be kept is damaged; nothing is removed),
    NewerFormatError, ResourceError.
    """
    kept, seconds = _limits(keep, grace, purge)
    name = os.fspath(path)
    if not list_versions(name) and not purge:
        raise UsageError(
            f"{name}: has no version to keep; run m3build compile, or remove what a stopped build left with "
            "--purge"
        )
    young_since = None if purge else time.time() - seconds
    if dry_run:
        return _report(name, make_plan(name, kept, young_since, purge=purge), purge, dry_run=True)
    with BankWriter(name, wait_seconds=wait_seconds):
        plan = make_plan(name, kept, young_since, purge=purge)
        _remove(name, plan, purge)
    return _report(name, plan, purge, dry_run=False)


def parse_duration(text: str | float) -> float:
    """Seconds in "30s", "15m", "1h" or "7d"; a number is seconds already. Raises UsageError."""
    if not isinstance(text, str):
        if 0 <= text < float("inf"):
            return float(text)
    elif match := _DURATION.fullmatch(text.strip()):
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    raise UsageError(f"a grace period is a time such as 30s, 15m, 1h or 7d, not {text!r}")


def _limits(keep: int | None, grace: str | float | None, purge: bool) -> tuple[int, float]:
    if keep is not None and keep < 1:
        raise UsageError(f"keep at least 1 version, not {keep}: the current one always stays")
    seconds = GRACE_SECONDS if grace is None else parse_duration(grace)
    if purge and keep is not None and keep > 1:
        raise UsageError(
            f"a purge keeps the current version alone, not {keep} versions: leave one of them out"
        )
    if purge and grace is not None and seconds > 0:
        raise UsageError(f"a purge knows no grace period, not even {grace}: leave one of them out")
    return (1 if purge else KEEP_VERSIONS) if keep is None else keep, seconds


def _remove(path: str, plan: Plan, purge: bool) -> None:
    with contextlib.ExitStack() as stack, resource_errors(f"cannot open {path}"):
        bank = open_directory(path, follow=True)
        stack.callback(os.close, bank)
        for directory, doomed in ((VERSIONS_DIRECTORY, plan.manifests), (DATA_DIRECTORY, plan.files)):
            descriptor = open_directory(directory, bank)
            stack.callback(os.close, descriptor)
            _remove_files(f"{path}/{directory}", descriptor, doomed, purge)
        if purge:
            with resource_errors(f"cannot empty {path}/{BUILD_DIRECTORY}"):
                shutil.rmtree(BUILD_DIRECTORY, dir_fd=bank)
        else:
            # The writer lock made it; what a stopped build left in it stays.
            with contextlib.suppress(OSError):
                os.rmdir(BUILD_DIRECTORY, dir_fd=bank)
        sync_directory(bank, path)


def _remove_files(where: str, directory: int, doomed: list[Doomed], purge: bool) -> None:
    """Removes files in the order given and makes that last."""
    for item in doomed:
        with resource_errors(f"cannot remove {where}/{item.name}"), contextlib.suppress(FileNotFoundError):
            os.unlink(item.name, dir_fd=directory)
    if purge:
        for name in os.listdir(directory):
            if name.startswith(TEMPORARY_PREFIX) and stat.S_ISREG(os.lstat(f"{where}/{name}").st_mode):
                raise ResourceError(
                    f"{where}/{name}: this temporary file cannot be removed; remove it yourself"
                )
    sync_directory(directory, where)


def _report(path: str, plan: Plan, purge: bool, *, dry_run: bool) -> GcReport:
    return GcReport(
        bank=path,
        purge=purge,
        dry_run=dry_run,
        kept=tuple(plan.kept),
        removed=tuple(plan.removed),
        unreadable=tuple(plan.unreadable),
        grace_versions=tuple(plan.grace_versions),
        files=len(plan.files),
        bytes_freed=sum(item.bytes for item in (*plan.manifests, *plan.files, *plan.build)),
        grace_files=plan.grace_files,
        foreign=tuple(sorted(plan.foreign)),
        linked=tuple(item.name for item in (*plan.files, *plan.build) if item.names > 1),
        shared_files=plan.shared_files,
        build_files=len(plan.build),
        codec=plan.training.get("codec"),
        embedder=plan.training.get("embedder"),
        beyond_reach=BEYOND_REACH if purge else (),
    )
