"""A data file opened for reading: checked for being a regular file of the right size, and mapped into memory.

The mapping keeps the file alive after gc unlinks its name, so an open bank stays readable. Views into it
(numpy arrays, Arrow buffers) keep it in turn; closing only drops this object's own hold.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import sys
import threading

from m3build_formats.atomic import open_regular
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError, ResourceError


class MappedFile:
    """One file of a version. Raises CorruptError where it is missing, no regular file or of another size,
    ResourceError where it cannot be opened."""

    def __init__(self, entry: FileEntry, directory: int) -> None:
        self.entry = entry
        self._whole_checked = False
        self._lock = threading.Lock()
        try:
            descriptor = open_regular(entry.name, directory)
        except FileNotFoundError:
            raise CorruptError(f"{entry.name}: is missing from data/") from None
        except OSError as error:
            raise _resource_error(entry.name, error) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != entry.bytes:
                raise CorruptError(f"{entry.name}: has {size} bytes, expected {entry.bytes}")
            self.data = _map(descriptor, size) if size else memoryview(b"")
        except OSError as error:
            raise _resource_error(entry.name, error) from error
        finally:
            os.close(descriptor)

    def whole(self) -> memoryview:
        """All bytes, after a check of the file's SHA-256 (once); raises CorruptError."""
        with self._lock:
            if not self._whole_checked:
                if hashlib.sha256(self.data).hexdigest() != self.entry.sha256:
                    raise CorruptError(f"{self.entry.name}: its bytes do not have the SHA-256 in its name")
                self._whole_checked = True
        return self.data

    def release(self) -> None:
        """Hands the pages of the file that were read back to the system, for whoever reads much of a bank
        once; a page that is touched again is read again."""
        if isinstance(self.data.obj, mmap.mmap):
            self.data.obj.madvise(mmap.MADV_DONTNEED)


def _map(descriptor: int, size: int) -> memoryview:
    if sys.version_info >= (3, 13):
        # Without a duplicate descriptor a bank of thousands of files fits any limit.
        return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, trackfd=False))
    return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))


def raise_descriptor_limit(needed: int) -> None:
    """Raises the process's soft limit of open files towards the hard one where ``needed`` more would not fit.
    macOS starts with 256."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + 128
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _resource_error(name: str, error: OSError) -> ResourceError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceError(f"{name}: too many open files; raise the limit (ulimit -n)")
    return ResourceError(f"{name}: cannot be read: {error.strerror}")
