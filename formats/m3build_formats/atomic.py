"""The file-system calls that a commit rests on, each with its one way to fail.

Files appear under their final name by `os.link` from a synced temporary file: that creates exclusively and
never shows half a file. Rename is used only to replace a damaged file. All paths are names within an open
directory (`dir_fd`), and symbolic links are never followed there, so a bank from a stranger cannot lead
outside itself. A failed fsync is final: the kernel may have dropped the pages, and a second fsync would say
all is well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import Final

from m3build_formats.errors import CorruptError, ResourceError
from m3build_formats.layout import TEMPORARY_PREFIX

_NO_LINKS: Final = frozenset(
    code
    for name in ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EXDEV")
    if (code := getattr(errno, name, None)) is not None
)
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextlib.contextmanager
def resource_errors(doing: str) -> Iterator[None]:
    """Turns an OSError inside the block into a ResourceError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{doing}: {_words(error)}") from error


def sync_file(descriptor: int, name: str) -> None:
    """Forces a file's bytes to the disk itself; raises ResourceError, after which the file must not be
    trusted."""
    try:
        if sys.platform == "darwin":
            import fcntl

            # Plain fsync on macOS leaves the bytes in the drive's cache; not every file system there knows
            # the full one.
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                    raise
                os.fsync(descriptor)
        else:
            os.fsync(descriptor)
    except OSError as error:
        raise ResourceError(
            f"cannot force {name} to disk: {_words(error)}; check the disk, then run again"
        ) from error


def sync_directory(descriptor: int, name: str) -> None:
    """Forces a directory's entries to disk."""
    sync_file(descriptor, f"the directory {name}")


def open_directory(name: str, parent: int | None = None, *, follow: bool = False) -> int:
    """A descriptor of a directory; raises the OSError of the call, NotADirectoryError for a symbolic link
    unless ``follow``."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        return os.open(name, flags, dir_fd=parent)
    except OSError as error:
        # Linux says ENOTDIR for a link, macOS ELOOP.
        if error.errno == errno.ELOOP and not follow:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from error
        raise


def open_regular(name: str, directory: int) -> int:
    """A descriptor to read the regular file ``name`` in ``directory``; raises the OSError of the call, and
    CorruptError for anything else than a regular file. Never blocks on a FIFO and never follows a link."""
    try:
        descriptor = os.open(name, _READ_FLAGS, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise CorruptError(f"{name}: is a link or a special file, which a bank never holds") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptError(f"{name}: is not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_temporary(directory: int) -> tuple[int, str]:
    """A new file under a temporary name in ``directory``: its descriptor (to read and write) and name. Mode
    0444: once published it never changes."""
    while True:
        name = f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError):
            return os.open(name, flags, 0o444, dir_fd=directory), name


def link_exclusively(temporary: str, name: str, directory: int, where: str) -> bool:
    """Gives a synced temporary file its final name; False where that name is taken. Raises ResourceError
    where the file system has no links."""
    try:
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise ResourceError(
                f"{where}: this file system has no hard links ({_words(error)}), which a commit needs; "
                "build on another disk and copy the finished bank"
            ) from error
        raise ResourceError(f"cannot create {name} in {where}: {_words(error)}") from error
    return True


def close_quietly(descriptor: int) -> None:
    """Gives back a descriptor that was written to. Its close may fail for bytes that are not on disk yet, but
    those that count were synced, and an error here would hide the one that led here."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def remove_quietly(name: str, directory: int) -> None:
    """Removes a temporary file if it is there; what cannot be removed is left to the next writer."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)


def remove_temporaries(directory: int) -> None:
    """Removes what a dead writer left; only the holder of the writer lock may call this."""
    for name in os.listdir(directory):
        if name.startswith(TEMPORARY_PREFIX):
            remove_quietly(name, directory)


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__
