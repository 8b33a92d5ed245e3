"""Sees every file-system call that the code under test makes below one directory, and can make it fail.

While a `Recorder` is entered, the functions of `os`, `fcntl`, `mmap` and the built-in `open` through which
m3build_formats reaches the disk are wrapped. A call that concerns the world (a directory, or a descriptor
opened below it) is numbered, handed to ``play``, which performs it or not, and put into the model of the disk
where one is given. fsync is never really done: what it means is the model's business.

Python's own audit events catch what goes by another road: a file of the world that is opened, linked,
renamed, removed or listed outside of a wrapped call is a stray. `test_crashes.py` checks the same against
strace, and that the code under test names no function of `os` which is not wrapped here.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType, TracebackType
from typing import Any, Final, Self

from calls import REAL, Call, Play, perform
from disk_model import Directory, Disk, File
from recorded_file import RecordedFile
from strays import unwatch, watch

MOST_CALLS: Final = 50_000
"""More than any case makes: the code under test goes round in circles."""


@dataclass
class _Open:
    path: str
    node: int
    writes: bool


class Recorder:
    """A context manager; one at a time. ``short`` makes reads and writes move fewer bytes than asked for,
    which POSIX allows. Descriptors still open at the end are counted in ``left_open`` and closed, as a dying
    process does."""

    def __init__(
        self, world: Path, play: Play = perform, disk: Disk | None = None, short: Random | None = None
    ) -> None:
        self.world = os.fspath(world)
        self.calls: list[Call] = []
        self.strays: list[str] = []
        self.left_open: list[str] = []
        self._play = play
        self._disk = disk
        self._short = short
        self._open: dict[int, _Open] = {}
        self._inside = 0

    def __enter__(self) -> Self:
        for (module, name), real in REAL.items():
            wrapped = self._map_class(real) if real is mmap.mmap else self._wrapper(module, name, real)
            setattr(module, name, wrapped)
        watch(self.audit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unwatch(self.audit)
        for (module, name), real in REAL.items():
            setattr(module, name, real)
        for descriptor, opened in self._open.items():
            self.left_open.append(opened.path)
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Notes an event that no wrapped call accounts for."""
        if self._inside or not arguments:
            return
        target = arguments[0]
        if isinstance(target, (str, bytes, os.PathLike)):
            path = os.fsdecode(target)
            concerns = path.startswith(self.world) or not os.path.isabs(path)
        else:
            concerns = target in self._open
        if concerns:
            self.strays.append(f"{event} {target}")

    def _wrapper(self, module: ModuleType, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        method = getattr(self, f"_{module.__name__}_{name}", None)

        def call(*arguments: Any, **options: Any) -> Any:
            if method is not None:
                return method(real, *arguments, **options)
            place = self._place(arguments[0] if arguments else ".", options.get("dir_fd"))
            return self._do(name, place, lambda: real(*arguments, **options))

        return call

    def _place(self, path: Any, directory: int | None = None) -> str | None:
        """The path relative to the world, None for what lies elsewhere."""
        if isinstance(path, int):
            return self._open[path].path if path in self._open else None
        name = os.fsdecode(path)
        if directory is not None:
            return os.path.join(self._open[directory].path, name) if directory in self._open else None
        if name == self.world:
            return ""
        return name[len(self.world) + 1 :] if name.startswith(self.world + "/") else None

    def _do(
        self,
        name: str,
        place: str | None,
        action: Callable[[], Any],
        *,
        changes: bool = False,
        can_fail: bool = True,
    ) -> Any:
        if place is None:
            return action()

        def inside() -> Any:
            self._inside += 1
            try:
                return action()
            finally:
                self._inside -= 1

        call = Call(len(self.calls), name, place, changes, can_fail)
        self.calls.append(call)
        if len(self.calls) > MOST_CALLS:
            raise RuntimeError(f"{MOST_CALLS} calls and no end")
        return self._play(call, inside)

    def _os_open(
        self, real: Any, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> Any:
        place = self._place(path, dir_fd)
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR))

        def action() -> int:
            descriptor: int = real(path, flags, mode, dir_fd=dir_fd)
            if place is not None:
                self._open[descriptor] = _Open(place, self._node(place, flags), writes)
            return descriptor

        return self._do("open", place, action, changes=bool(flags & (os.O_CREAT | os.O_TRUNC)))

    def _node(self, place: str, flags: int) -> int:
        if self._disk is None:
            return -1
        try:
            node = self._disk.node(place)
        except KeyError:
            return self._disk.create(place, File())
        if flags & os.O_TRUNC:
            self._disk.truncate(node, 0)
        return node

    def _os_dup(self, real: Any, descriptor: int) -> Any:
        def action() -> int:
            copy: int = real(descriptor)
            if descriptor in self._open:
                self._open[copy] = self._open[descriptor]
            return copy

        return self._do("dup", self._place(descriptor), action)

    def _os_close(self, real: Any, descriptor: int) -> Any:
        def action() -> None:
            real(descriptor)
            self._open.pop(descriptor, None)

        writes = descriptor in self._open and self._open[descriptor].writes
        return self._do("close", self._place(descriptor), action, can_fail=writes)

    def _os_write(self, real: Any, descriptor: int, data: Any) -> Any:
        return self._write("write", descriptor, data, None, lambda part: real(descriptor, part))

    def _os_pwrite(self, real: Any, descriptor: int, data: Any, offset: int) -> Any:
        return self._write("pwrite", descriptor, data, offset, lambda part: real(descriptor, part, offset))

    def _write(self, name: str, descriptor: int, data: Any, offset: int | None, real: Any) -> Any:
        place = self._place(descriptor)

        def action() -> int:
            part = bytes(data)
            if self._short is not None and part and place is not None:
                part = part[: self._short.randint(1, len(part))]
            count: int = real(part)
            if self._disk is not None and place is not None:
                self._disk.write(self._open[descriptor].node, part[:count], offset)
            return count

        return self._do(name, place, action, changes=True)

    def _os_pread(self, real: Any, descriptor: int, size: int, offset: int) -> Any:
        place = self._place(descriptor)
        if self._short is not None and place is not None and size:
            size = self._short.randint(1, size)
        return self._do("pread", place, lambda: real(descriptor, size, offset))

    def _os_fsync(self, real: Any, descriptor: int) -> Any:
        place = self._place(descriptor)

        def action() -> None:
            if self._disk is not None and place is not None:
                self._disk.sync(self._open[descriptor].node)

        return self._do("fsync", place, action, changes=True)

    def _fcntl_fcntl(self, real: Any, descriptor: int, command: int, argument: Any = 0) -> Any:
        if command == getattr(fcntl, "F_FULLFSYNC", None):
            return self._os_fsync(real, descriptor)
        return self._do("fcntl", self._place(descriptor), lambda: real(descriptor, command, argument))

    def _os_ftruncate(self, real: Any, descriptor: int, size: int) -> Any:
        place = self._place(descriptor)

        def action() -> None:
            real(descriptor, size)
            if self._disk is not None and place is not None:
                self._disk.truncate(self._open[descriptor].node, size)

        return self._do("ftruncate", place, action, changes=True)

    def _os_mkdir(self, real: Any, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        change = lambda disk, place: disk.create(place, Directory({}))  # noqa: E731
        return self._entry("mkdir", path, dir_fd, lambda: real(path, mode, dir_fd=dir_fd), change)

    def _os_unlink(self, real: Any, path: Any, *, dir_fd: int | None = None) -> Any:
        return self._entry("unlink", path, dir_fd, lambda: real(path, dir_fd=dir_fd), Disk.remove)

    _os_remove = _os_unlink

    def _os_rmdir(self, real: Any, path: Any, *, dir_fd: int | None = None) -> Any:
        return self._entry("rmdir", path, dir_fd, lambda: real(path, dir_fd=dir_fd), Disk.remove)

    def _os_link(self, real: Any, source: Any, target: Any, **options: Any) -> Any:
        return self._pair("link", real, source, target, options, Disk.link)

    def _os_rename(self, real: Any, source: Any, target: Any, **options: Any) -> Any:
        return self._pair("rename", real, source, target, options, Disk.rename)

    _os_replace = _os_rename

    def _pair(
        self,
        name: str,
        real: Any,
        source: Any,
        target: Any,
        options: dict[str, Any],
        change: Callable[[Disk, str, str], object],
    ) -> Any:
        start = self._place(source, options.get("src_dir_fd"))
        return self._entry(
            name,
            target,
            options.get("dst_dir_fd"),
            lambda: real(source, target, **options),
            lambda disk, place: change(disk, start or "", place),
        )

    def _entry(
        self,
        name: str,
        path: Any,
        directory: int | None,
        real: Callable[[], Any],
        change: Callable[[Disk, str], object],
    ) -> Any:
        place = self._place(path, directory)

        def action() -> Any:
            result = real()
            if self._disk is not None and place is not None:
                change(self._disk, place)
            return result

        return self._do(name, place, action, changes=True)

    def _map_class(self, real: type[mmap.mmap]) -> type[mmap.mmap]:
        """A class in place of mmap's, since whoever holds a map may ask whether it is one."""
        recorder = self

        class RecordedMap(real):  # type: ignore[misc, valid-type]
            def __new__(cls, descriptor: int, *arguments: Any, **options: Any) -> Any:
                def action() -> Any:
                    return super(RecordedMap, cls).__new__(cls, descriptor, *arguments, **options)

                return recorder._do("mmap", recorder._place(descriptor), action)

        return RecordedMap

    def _builtins_open(
        self, real: Any, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any
    ) -> Any:
        """A descriptor of the world becomes a file whose reads are calls; it closes the descriptor itself."""
        if not isinstance(file, int) or self._place(file) is None or mode != "rb":
            return real(file, mode, buffering, *rest, **options)
        self._inside += 1
        try:
            raw = RecordedFile(self, file)
        finally:
            self._inside -= 1
        return raw if buffering == 0 else io.BufferedReader(raw)

    def read_call(self, name: str, descriptor: int, action: Callable[[], Any]) -> Any:
        """One read of a `RecordedFile`."""
        return self._do(name, self._place(descriptor), action)

    def shortened(self, size: int) -> int:
        """How many of ``size`` bytes a read may move."""
        return self._short.randint(1, size) if self._short is not None and size > 0 else size

    def forget(self, descriptor: int) -> None:
        """A `RecordedFile` closed its descriptor."""
        self._open.pop(descriptor, None)
