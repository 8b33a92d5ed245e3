"""Python's own audit events: what a process does to files, whichever road it takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

_AUDITED: Final = frozenset(
    [
        "open",
        "os.mkdir",
        "os.link",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.truncate",
        "os.symlink",
        "os.listdir",
        "os.scandir",
        "os.chmod",
        "os.chown",
        "os.utime",
        "os.setxattr",
        "os.removexattr",
        "fcntl.flock",
        "fcntl.fcntl",
        "fcntl.lockf",
        "mmap.__new__",
    ]
)
Watch = Callable[[str, tuple[Any, ...]], None]
_watching: list[Watch] = []


def watch(call: Watch) -> None:
    """Hands every event about files to ``call`` from now on."""
    _watching.append(call)


def unwatch(call: Watch) -> None:
    """Ends what `watch` began."""
    _watching.remove(call)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in _AUDITED:
        for call in _watching:
            call(event, arguments)


# An audit hook stays for the life of the process; it costs nothing while nobody watches.
sys.addaudithook(_audit)
