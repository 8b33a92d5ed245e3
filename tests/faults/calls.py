"""The calls through which m3build_formats reaches the disk, and what may be done with one of them."""

from __future__ import annotations

import builtins
import fcntl
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

WRAPPED: Final = {
    os: (
        *("open", "close", "write", "pwrite", "pread", "fsync", "ftruncate", "link", "unlink", "remove"),
        *("rename", "replace", "mkdir", "rmdir", "stat", "lstat", "fstat", "listdir", "scandir", "dup"),
    ),
    fcntl: ("flock", "fcntl"),
    mmap: ("mmap",),
    builtins: ("open",),
}
REAL: Final = {(module, name): getattr(module, name) for module, names in WRAPPED.items() for name in names}
"""The functions as they are while no recorder is entered."""


@dataclass(frozen=True)
class Call:
    """A call as it is about to be made. ``path`` is relative to the world; ``changes`` is true where it can
    change the disk or what is safe on it, ``can_fail`` is false for closing what was only read."""

    number: int
    name: str
    path: str
    changes: bool
    can_fail: bool = True

    def __str__(self) -> str:
        return f"call {self.number}, {self.name} {self.path}"


Play = Callable[[Call, Callable[[], Any]], Any]


def perform(call: Call, action: Callable[[], Any]) -> Any:
    """Plays a call as it is."""
    return action()
