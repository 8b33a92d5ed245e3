"""Walks a directory: regular files below it, links followed, never a cycle, hidden files and directories
skipped.

Real directories are walked before linked ones and every directory once, so that links to places already
walked add nothing (their files are in, under their own path) and no web of links can make the walk explode.
A link to a directory that it lies in itself is a loop and a reject. Nothing is opened here, so a FIFO or a
device cannot make the walk hang.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from m3build.corpus.read import unreadable
from m3build.corpus.source import WHOLE_FILE, BadInput

OnBad = Callable[[str, BadInput], None]
_Directory = tuple[int, int]


def walk(top: str, on_bad: OnBad) -> Iterator[str]:
    """Paths relative to ``top`` of the files below it, in no order that matters; ``on_bad`` gets a relative
    path and what is wrong there."""
    visited: set[_Directory] = set()
    waiting: list[str] = [""]
    linked: list[str] = []
    while waiting or linked:
        if waiting:
            below = waiting.pop()
        else:
            linked.sort(key=os.fsencode, reverse=True)
            below = linked.pop()
        path = os.path.join(top, below) if below else top
        try:
            status = os.stat(path)
            here = (status.st_dev, status.st_ino)
            if here in visited:
                if below and here in _ancestors(top, below):
                    on_bad(below, BadInput(WHOLE_FILE, "a link to a directory that it lies in; not followed"))
                continue
            visited.add(here)
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            on_bad(below or os.path.basename(top), BadInput(WHOLE_FILE, unreadable(error)))
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue
            inner = os.path.join(below, entry.name)
            match _kind(entry):
                case "file":
                    yield inner
                case "directory":
                    (linked if entry.is_symlink() else waiting).append(inner)
                case BadInput() as bad:
                    on_bad(inner, bad)


def _kind(entry: os.DirEntry[str]) -> str | BadInput:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return BadInput(WHOLE_FILE, "a link that leads back to itself")
        if isinstance(error, FileNotFoundError) and entry.is_symlink():
            return BadInput(WHOLE_FILE, "a dangling link")
        return BadInput(WHOLE_FILE, unreadable(error))
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISREG(mode):
        return "file"
    return BadInput(WHOLE_FILE, "not a regular file (a pipe, socket or device)", "unsupported")


def _ancestors(top: str, below: str) -> set[_Directory]:
    parents: set[_Directory] = set()
    while below:
        below = os.path.dirname(below)
        status = os.stat(os.path.join(top, below) if below else top)
        parents.add((status.st_dev, status.st_ino))
    return parents
