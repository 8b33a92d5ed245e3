"""Makes new versions: one writer at a time, files first, the manifest last.

The lock is a flock on ``writer.lock``, so it ends with its holder however that dies; the file itself stays,
since removing it would let two writers lock two files of one name. Commit: every data file was synced when it
was added; sync data/; create the manifest exclusively by `os.link` from a synced temporary file; sync
versions/. A version names the one it was made from, and the commit fails if that is no longer current.
Whoever dies in between leaves a whole old version or a whole new one, and temporary files that the next
writer removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from m3build_formats.atomic import (
    close_quietly,
    create_temporary,
    link_exclusively,
    open_directory,
    remove_quietly,
    remove_temporaries,
    resource_errors,
    sync_directory,
    sync_file,
)
from m3build_formats.bank import list_versions, manifest_name, read_manifest
from m3build_formats.data_directory import Content, DataDirectory
from m3build_formats.entries import FileEntry
from m3build_formats.errors import BusyError, CorruptError, ResourceError, UsageError
from m3build_formats.layout import (
    BUILD_DIRECTORY,
    DATA_DIRECTORY,
    LOCK_FILE,
    MAX_MANIFEST_BYTES,
    MAX_VERSION,
    VERSIONS_DIRECTORY,
)
from m3build_formats.manifest import BaseVersion, Manifest, VersionContents
from m3build_formats.manifest_check import manifest_problems

_RETRY_SECONDS: Final = 0.05


class BankWriter:
    """The one writer of a bank, from ``with BankWriter(path) as writer:`` to the end of the block. Makes the
    bank's directories where they are missing.

    A forked child holds the lock too, until it ends. Raises on entering: BusyError where another process
    writes (its id is named; ``wait_seconds`` waits for it), UsageError where ``path`` is something else than
    a bank or an empty or new directory, ResourceError.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait_seconds: float = 0.0) -> None:
        self.path = Path(path)
        self._wait_seconds = wait_seconds
        self._lock = -1
        self._versions = -1
        self._data: DataDirectory | None = None
        self._broken: str | None = None

    def __enter__(self) -> Self:
        is_new = _make_bank_directory(self.path)
        try:
            with resource_errors(f"cannot write to {self.path}"):
                self._enter(is_new)
            self._data = DataDirectory(self.path / DATA_DIRECTORY)
        except BaseException:
            self._release()
            raise
        return self

    def _enter(self, is_new: bool) -> None:
        bank = open_directory(os.fspath(self.path), follow=True)
        try:
            self._lock = _take_lock(bank, self.path, self._wait_seconds)
            if is_new:
                # The lock's name marks a bank that has nothing else yet, so it is safe before anything else
                # appears: of unsynced entries a power loss may leave any.
                sync_directory(bank, os.fspath(self.path))
            for name in (VERSIONS_DIRECTORY, DATA_DIRECTORY, BUILD_DIRECTORY):
                _make_directory(name, bank)
            sync_directory(bank, os.fspath(self.path))
            self._versions = open_directory(VERSIONS_DIRECTORY, bank)
            # A writer that died may have left a version that is there for all to see and not yet on disk.
            sync_directory(self._versions, os.fspath(self.path / VERSIONS_DIRECTORY))
            data = open_directory(DATA_DIRECTORY, bank)
        finally:
            os.close(bank)
        try:
            remove_temporaries(self._versions)
            remove_temporaries(data)
        finally:
            os.close(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    @property
    def data(self) -> DataDirectory:
        """The bank's data/ as a place for files; other processes may open their own `DataDirectory` of it
        while this writer lives."""
        if self._data is None:
            raise RuntimeError("the bank writer is not open")
        return self._data

    @property
    def build_directory(self) -> Path:
        """Where resumable work is kept; never part of a version, and left alone by this class."""
        return self.path / BUILD_DIRECTORY

    def current(self) -> Manifest | None:
        """The manifest of the current version, None before the first; raises CorruptError."""
        return read_manifest(self.path) if list_versions(self.path) else None

    def add_file(self, kind: str, content: Content) -> FileEntry:
        """Creates one data file (see `DataDirectory.add_file`)."""
        return self.data.add_file(kind, content)

    def is_sound(self, entry: FileEntry) -> bool:
        """Whether an entry's file is there with its SHA-256; one that is not must be written anew before a
        version may name it."""
        return self.data.is_sound(entry)

    def commit(
        self, contents: VersionContents, base: Manifest | None, *, over_damaged: int | None = None
    ) -> Manifest:
        """Creates the version that follows ``base`` (None for a first one) and returns its manifest.

        ``over_damaged`` is the number of the current version where its manifest is damaged: the new version
        then follows that one, and ``base`` is any older version.

        Raises BusyError where ``base`` is no longer current (plan anew and try again), CorruptError where a
        data file that ``contents`` names is missing or has another size, ResourceError, and ValueError for
        contents that make no valid manifest.
        """
        self._refuse_if_broken()
        version = (over_damaged or (base.version if base else 0)) + 1
        if version > MAX_VERSION:
            raise ResourceError(f"{self.path}: format 1 numbers no more than {MAX_VERSION} versions")
        if over_damaged is None:
            self._check_base(base)
        else:
            self._check_damaged(over_damaged)
        manifest = Manifest(
            **{item.name: getattr(contents, item.name) for item in fields(VersionContents)},
            version=version,
            base=BaseVersion(version=base.version, sha256=base.sha256) if base else None,
            created=_creation_time(),
        )
        if problems := manifest_problems(manifest.to_json()):
            raise ValueError("no valid manifest: " + "; ".join(map(str, problems[:5])))
        data = manifest.to_bytes()
        if len(data) > MAX_MANIFEST_BYTES:
            raise ResourceError(
                f"{self.path}: the manifest of version {version} would have {len(data):,} bytes, and "
                f"format 1 allows {MAX_MANIFEST_BYTES:,}: divide the bank"
            )
        for name, (_, entry) in sorted(manifest.all_files().items()):
            if not self.data.has_size(entry):
                raise CorruptError(
                    f"{name}: is missing from data/ or has another size; run m3build compile again"
                )
        self.data.sync()
        self._create_manifest(manifest_name(version), data)
        return read_manifest(self.path, version)

    def _check_base(self, base: Manifest | None) -> None:
        versions = list_versions(self.path)
        current = versions[-1] if versions else None
        if current != (base.version if base else None):
            made = f"version {base.version}" if base else "an empty bank"
            raise BusyError(
                f"{self.path}: this build started from {made}, but version {current} is current; run it again"
            )
        if base is not None and read_manifest(self.path, base.version).sha256 != base.sha256:
            raise BusyError(
                f"{self.path}: version {base.version} is no longer what this build started from; run it again"
            )

    def _check_damaged(self, version: int) -> None:
        """Raises BusyError unless ``version`` is current and damaged."""
        if list_versions(self.path)[-1:] == [version]:
            try:
                read_manifest(self.path, version)
            except CorruptError:
                return
        raise BusyError(f"{self.path}: version {version} is no longer damaged and current; run it again")

    def _create_manifest(self, name: str, data: bytes) -> None:
        where = os.fspath(self.path / VERSIONS_DIRECTORY)
        with resource_errors(f"cannot create a file in {where}"):
            descriptor, temporary = create_temporary(self._versions)
        try:
            with resource_errors(f"cannot write {name} in {where}"):
                view = memoryview(data)
                while view.nbytes:
                    view = view[os.write(descriptor, view) :]
            self._final(lambda: sync_file(descriptor, f"{where}/{name}"))
            if not link_exclusively(temporary, name, self._versions, where):
                raise BusyError(f"{where}/{name} appeared while this build ran; run it again")
            self._final(lambda: sync_directory(self._versions, where))
        finally:
            close_quietly(descriptor)
            remove_quietly(temporary, self._versions)

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise ResourceError(
                f"{self._broken} (an earlier failure; nothing more is committed by this process)"
            )
        self.data.refuse_if_broken()

    def _final(self, sync: Callable[[], None]) -> None:
        try:
            sync()
        except ResourceError as error:
            self._broken = str(error)
            raise

    def _release(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None
        for descriptor in (self._versions, self._lock):
            if descriptor >= 0:
                close_quietly(descriptor)
        self._versions = self._lock = -1


def _make_bank_directory(path: Path) -> bool:
    """Makes the bank's directory where it is missing. True where it holds no bank yet."""
    with resource_errors(f"cannot make the directory {path}"):
        path.mkdir(parents=True, exist_ok=True)
        names = {name for name in os.listdir(path) if not name.startswith(".")}
        if names and not names & {VERSIONS_DIRECTORY, LOCK_FILE}:
            raise UsageError(
                f"{path}: is a directory with other things in it, not a bank; name an empty or new one"
            )
        is_new = VERSIONS_DIRECTORY not in names
        if is_new:
            _sync_above(path.absolute())
    return is_new


def _sync_above(path: Path) -> None:
    """Forces the entries that lead to a new bank to disk, as far up as its file system goes.

    All of them, not only those made just now: a writer that died may have made directories and synced none.
    """
    device = path.stat().st_dev
    for place in path.parents:
        try:
            directory = open_directory(os.fspath(place), follow=True)
        except PermissionError:
            return  # no writer of ours made an entry in there
        try:
            if os.fstat(directory).st_dev != device:
                return
            sync_directory(directory, os.fspath(place))
        finally:
            os.close(directory)


def _make_directory(name: str, parent: int) -> None:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        os.close(open_directory(name, parent))


def _take_lock(bank: int, path: Path, wait_seconds: float) -> int:
    descriptor = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644, dir_fd=bank)
    end = time.monotonic() + wait_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                if time.monotonic() >= end:
                    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                    raise BusyError(
                        f"{path}: process {holder or '(unknown)'} is writing this bank; try again later"
                    ) from None
            time.sleep(_RETRY_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        close_quietly(descriptor)
        raise
    return descriptor


def _creation_time() -> str:
    """Now, or the time that SOURCE_DATE_EPOCH sets (reproducible-builds.org), in UTC with seconds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH={epoch!r} is not a number of seconds") from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
