"""Makes an older version current again, by a new version that holds the same: nothing is overwritten, and the
way forward is a rollback too.

Needs the standard library only. Files are hashed before the writer lock is taken, since that may take long
and names of data files never get other bytes; under the lock, what must still hold is looked at once more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from m3build_formats.atomic import resource_errors
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import DataDirectory
from m3build_formats.errors import BusyError, CorruptError, MismatchError, UsageError
from m3build_formats.history import ROLLBACK, same_contents
from m3build_formats.info import excluded_patterns
from m3build_formats.layout import DATA_DIRECTORY
from m3build_formats.manifest import Manifest

WAIT_SECONDS: Final = 10.0
_TRIES: Final = 5
_SHOWN_FILES: Final = 5
Watch = Callable[[int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a rollback did. ``restored`` is the version asked for, ``left`` the one that was current,
    ``version`` the one that is current now: the same as ``left`` where that held the same already (then
    ``changed`` is false and no file was looked at).

    ``left_damaged``: the manifest of ``left`` cannot be read, so nothing leads back to it. ``files_checked``
    and ``bytes_checked`` are data files of the restored version; with ``quick`` only their sizes were
    compared.
    """

    bank: str
    restored: int
    left: int
    version: int
    sha256: str
    changed: bool
    left_damaged: bool
    quick: bool
    files_checked: int
    bytes_checked: int

    def to_json(self) -> dict[str, Any]:
        """The outcome as one JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


def rollback(
    path: str | os.PathLike[str],
    version: int,
    *,
    quick: bool = False,
    readmit: Collection[str] = (),
    wait_seconds: float = WAIT_SECONDS,
    watch: Watch | None = None,
) -> Rollback:
    """Commits a new version with the contents of ``version``.

    All its data files are hashed first; ``quick`` compares only their sizes. ``watch`` is entered with the
    bytes to be hashed and gives a function that is told the bytes of each file done. Another writer is waited
    for ``wait_seconds``; what it commits becomes the base. A current version whose manifest is damaged is
    gone over: the new version then names the restored one as its base.

    Documents that were excluded since ``version`` would come back, and later builds would not leave them out
    any more: each pattern that this concerns must be named in ``readmit``, otherwise MismatchError.

    Raises UsageError (no bank, no such version), CorruptError (the version's manifest or one of its files is
    damaged or missing), BusyError (another process writes), NewerFormatError, ResourceError.
    """
    target = read_manifest(path, version)
    current = _current(path)
    if isinstance(current, Manifest) and same_contents(current, target):
        return _unchanged(path, target, current, quick)
    _check_excluded(path, target, current, readmit)
    files = target.all_files()
    size = 0 if quick else sum(entry.bytes for _, entry in files.values())
    try:
        with (watch or _unwatched)(size) as advance:
            _check_files(path, target, quick, advance)
    except CorruptError:
        _check_version(path, target)
        raise
    end = time.monotonic() + wait_seconds
    for _ in range(_TRIES):
        with BankWriter(path, wait_seconds=max(0.0, end - time.monotonic())) as writer:
            current = _current(path)
            if isinstance(current, Manifest) and same_contents(current, target):
                return _unchanged(path, target, current, quick)
            _check_excluded(path, target, current, readmit)
            _check_still_there(path, target)
            base, damaged = (current, None) if isinstance(current, Manifest) else (target, current)
            contents = replace(target.contents, operation=ROLLBACK)
            try:
                made = writer.commit(contents, base, over_damaged=damaged)
            except BusyError:
                # Somebody who takes no lock made a version in between: it becomes the base.
                continue
        return Rollback(
            bank=os.fspath(path),
            restored=target.version,
            left=damaged or base.version,
            version=made.version,
            sha256=made.sha256,
            changed=True,
            left_damaged=damaged is not None,
            quick=quick,
            files_checked=len(files),
            bytes_checked=size,
        )
    raise BusyError(f"{os.fspath(path)}: {_TRIES} times another version appeared first; try again later")


def _check_excluded(
    path: str | os.PathLike[str], target: Manifest, current: Manifest | int, readmit: Collection[str]
) -> None:
    """Raises MismatchError where the target may hold what has been taken down since."""
    # What a damaged version excluded cannot be known; what the one before it did, it did as a rule too.
    known = current if isinstance(current, Manifest) else _newest_readable(path)
    if back := sorted(set(excluded_patterns(known)) - set(excluded_patterns(target)) - set(readmit)):
        raise MismatchError(
            f"version {target.version} may hold documents that were excluded since: {', '.join(back)}. "
            "Exclude them in a build of the older sources instead, or name each pattern with --readmit to "
            "bring them back"
        )


@contextmanager
def _unwatched(_total: int) -> Iterator[Callable[[int], object]]:
    yield lambda _: None


def _current(path: str | os.PathLike[str]) -> Manifest | int:
    """The current version, or its number where its manifest is damaged."""
    try:
        return read_manifest(path)
    except CorruptError:
        return list_versions(path)[-1]


def _newest_readable(path: str | os.PathLike[str]) -> Manifest:
    for number in reversed(list_versions(path)):
        with suppress(CorruptError, UsageError):
            return read_manifest(path, number)
    return read_manifest(path)


def _unchanged(path: str | os.PathLike[str], target: Manifest, current: Manifest, quick: bool) -> Rollback:
    return Rollback(
        bank=os.fspath(path),
        restored=target.version,
        left=current.version,
        version=current.version,
        sha256=current.sha256,
        changed=False,
        left_damaged=False,
        quick=quick,
        files_checked=0,
        bytes_checked=0,
    )


def _check_files(
    path: str | os.PathLike[str], target: Manifest, quick: bool, advance: Callable[[int], object]
) -> None:
    """Raises CorruptError that names the target's missing and damaged files."""
    directory = Path(path, DATA_DIRECTORY)
    with resource_errors(f"cannot look at {directory}"):
        there = directory.is_dir() and not directory.is_symlink()
    if not there:
        raise CorruptError(f"{directory}: the bank has no such directory (or it is a link)")
    entries = [entry for _, (_, entry) in sorted(target.all_files().items())]
    with DataDirectory(directory) as data:
        bad = [entry.name for entry in entries if not data.has_size(entry)]
        # Sizes of all come first: what is missing is known before hours of hashing.
        for entry in entries if not bad and not quick else ():
            if not data.is_sound(entry):
                bad.append(entry.name)
            advance(entry.bytes)
    if bad:
        more = f" and {len(bad) - _SHOWN_FILES} more" if len(bad) > _SHOWN_FILES else ""
        raise CorruptError(
            f"{os.fspath(path)}: version {target.version} is not whole, so nothing was changed; missing from "
            f"{DATA_DIRECTORY}/ or damaged: {', '.join(bad[:_SHOWN_FILES])}{more}. Restore the files from a "
            "copy of the bank, or choose another version"
        )


def _check_still_there(path: str | os.PathLike[str], target: Manifest) -> None:
    """Under the lock: nobody removed or replaced the version while its files were hashed."""
    _check_version(path, target)
    with _unwatched(0) as advance:
        _check_files(path, target, True, advance)


def _check_version(path: str | os.PathLike[str], target: Manifest) -> None:
    """Raises UsageError where a collection took the version, and then its files too."""
    try:
        there = read_manifest(path, target.version)
    except UsageError as error:
        raise UsageError(f"{error} (it was removed a moment ago)") from None
    if there.sha256 != target.sha256:
        raise BusyError(f"{os.fspath(path)}: version {target.version} is another one now; run it again")
