"""Creates data files that are named by their own content.

A file is hashed while it is written to a temporary name, synced, and linked to ``<sha256>.<suffix>``. So a
name is never reused for other bytes, and workers in other processes may each have a `DataDirectory` of the
same bank while one process holds its writer lock. Where the name is taken, the file there is read and hashed:
equal bytes are reused (and the new file dropped), damaged ones replaced by rename, which leaves readers of
the old one undisturbed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from m3build_formats.atomic import (
    close_quietly,
    create_temporary,
    link_exclusively,
    open_directory,
    open_regular,
    remove_quietly,
    remove_temporaries,
    resource_errors,
    sync_file,
)
from m3build_formats.entries import Batches, FileEntry, file_name
from m3build_formats.errors import CorruptError, ResourceError
from m3build_formats.layout import SUFFIXES

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TableShape:
    """What a writer of rows knows about the file it wrote beyond bytes and hash."""

    rows: int
    batches: Batches | None = None


class Sink(Protocol):
    """What the writers of single files need: something that appends bytes."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object: ...


class FileTarget(Protocol):
    """Where finished files go: a `DataDirectory` or the `BankWriter` that owns one."""

    def add_file(self, kind: str, content: Content) -> FileEntry: ...


Content = bytes | bytearray | memoryview | Callable[[Sink], TableShape | None]


class HashingSink:
    """Appends to a descriptor through one buffer, hashing on the way. ``doing`` says in words what failed
    when the disk does."""

    def __init__(self, descriptor: int, doing: str) -> None:
        self._descriptor = descriptor
        self._doing = doing
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self.bytes = 0

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Appends ``data`` and returns its length; raises ResourceError."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.bytes += view.nbytes
        if len(self._buffer) + view.nbytes > _BUFFER_BYTES:
            self.flush()
        if view.nbytes > _BUFFER_BYTES:
            self._write_out(view)
        else:
            self._buffer += view
        return view.nbytes

    def flush(self) -> None:
        """Hands everything to the operating system."""
        full, self._buffer = self._buffer, bytearray()
        self._write_out(memoryview(full))

    @property
    def sha256(self) -> str:
        """Hex digest of all that was written."""
        return self._hash.hexdigest()

    def _write_out(self, view: memoryview) -> None:
        with resource_errors(self._doing):
            while view.nbytes:
                view = view[os.write(self._descriptor, view) :]


class DataDirectory:
    """The data/ directory of a bank (or any other directory that exists) as a place to put content-addressed
    files.

    ``written`` are the names of the files that this object created or replaced; one that was there whole is
    not among them. A context manager; safe to use from several threads and, on the same directory, from
    several processes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._broken: str | None = None
        self.written: set[str] = set()
        with resource_errors(f"cannot open {self.path}"):
            self._descriptor = open_directory(os.fspath(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the directory's descriptor back; the files stay."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove_temporaries(self) -> None:
        """Remove what dead processes left half written. Only for the holder of the writer lock, and while
        nothing else writes here."""
        remove_temporaries(self._descriptor)

    def add_file(self, kind: str, content: Content) -> FileEntry:
        """Creates one file of ``kind`` (a key of `layout.SUFFIXES`) and returns its entry.

        ``content`` is its bytes, or a function that writes them to a sink and returns rows and batches.
        Nothing is left under a temporary name, whatever the function raises. Raises ResourceError where disk
        or permission fails.
        """
        if kind not in SUFFIXES:
            raise ValueError(f"no file kind {kind!r}")
        self.refuse_if_broken()
        with resource_errors(f"cannot create a file in {self.path}"):
            descriptor, temporary = create_temporary(self._descriptor)
        try:
            sink = HashingSink(descriptor, f"cannot write a {SUFFIXES[kind]} file in {self.path}")
            if callable(content):
                shape = content(sink)
            else:
                sink.write(content)
                shape = None
            sink.flush()
            entry = FileEntry(
                name=file_name(sink.sha256, kind),
                sha256=sink.sha256,
                bytes=sink.bytes,
                rows=shape.rows if shape else None,
                batches=shape.batches if shape else None,
            )
            self._publish(descriptor, temporary, entry)
            return entry
        finally:
            close_quietly(descriptor)
            remove_quietly(temporary, self._descriptor)

    def take_back(self, kept: Collection[str]) -> None:
        """Remove what this object wrote, but for the names in ``kept``; what cannot be removed stays, for
        ``gc``."""
        for name in self.written.difference(kept):
            remove_quietly(name, self._descriptor)
        self.written.intersection_update(kept)

    def is_sound(self, entry: FileEntry) -> bool:
        """Whether the file of ``entry`` is there with its size and SHA-256 (reads all of it)."""
        return self.has_size(entry) and self._digest(entry.name) == entry.sha256

    def has_size(self, entry: FileEntry) -> bool:
        """Whether the file of ``entry`` is there with its size (reads nothing)."""
        try:
            found = os.stat(entry.name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ResourceError(f"cannot look at {self.path / entry.name}: {error.strerror}") from error
        return found.st_size == entry.bytes

    def sync(self) -> None:
        """Forces the names of all files so far to disk; a failure is final for this object."""
        self.refuse_if_broken()
        self._final(lambda: sync_file(self._descriptor, f"the directory {self.path}"))

    def refuse_if_broken(self) -> None:
        """Raises ResourceError after an fsync failed: what was written since the last good one may be
        lost."""
        if self._broken is not None:
            raise ResourceError(
                f"{self._broken} (an earlier failure; nothing more is written by this process)"
            )

    def _publish(self, descriptor: int, temporary: str, entry: FileEntry) -> None:
        if self.is_sound(entry):
            return
        self.written.add(entry.name)
        self._final(lambda: sync_file(descriptor, entry.name))
        if link_exclusively(temporary, entry.name, self._descriptor, os.fspath(self.path)) or self.is_sound(
            entry
        ):
            return
        with resource_errors(f"cannot replace the damaged {self.path / entry.name}"):
            os.replace(temporary, entry.name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def _digest(self, name: str) -> str | None:
        try:
            descriptor = open_regular(name, self._descriptor)
        except (FileNotFoundError, CorruptError):
            return None
        except OSError as error:
            raise ResourceError(f"cannot read {self.path / name}: {error.strerror}") from error
        with open(descriptor, "rb", buffering=0) as file, resource_errors(f"cannot read {self.path / name}"):
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _final(self, sync: Callable[[], None]) -> None:
        try:
            sync()
        except ResourceError as error:
            self._broken = str(error)
            raise
