"""Walks a directory: regular files below it, links followed, never a cycle, hidden files and directories
skipped, and banks: one that is made inside its own sources would be read by the next build.

Real directories are walked before linked ones and every directory once, so that links to places already
walked add nothing (their files are in, under their own path) and no web of links can make the walk explode.
A link to a directory that it lies in itself is a loop and a reject. Nothing is opened here, so a FIFO or a
device cannot make the walk hang.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Literal

from m3build.corpus.read import unreadable
from m3build.corpus.source import WHOLE_FILE, BadInput
from m3build_formats.bank import looks_like_bank

_Directory = tuple[int, int]

NOT_REGULAR = BadInput(WHOLE_FILE, "not a regular file (a pipe, socket or device)", "unsupported")


def walk(top: str) -> Iterator[tuple[str, BadInput | None]]:
    """Paths relative to ``top`` ("" for itself) of the files below it with None, and of what is wrong below
    it with the problem; in no order that matters."""
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
            here = _identity(path)
            if here in visited:
                if below and here in _ancestors(top, below):
                    yield below, BadInput(WHOLE_FILE, "a link to a directory that it lies in; not followed")
                continue
            visited.add(here)
            if looks_like_bank(path):
                continue
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield below, BadInput(WHOLE_FILE, unreadable(error))
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue
            inner = os.path.join(below, entry.name)
            kind = _kind(entry)
            if kind == "directory":
                (linked if entry.is_symlink() else waiting).append(inner)
            else:
                yield inner, None if kind == "file" else kind


def _kind(entry: os.DirEntry[str]) -> Literal["file", "directory"] | BadInput:
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
    return "file" if stat.S_ISREG(mode) else NOT_REGULAR


def _identity(path: str) -> _Directory:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _ancestors(top: str, below: str) -> set[_Directory]:
    """The directories from ``top`` down to the one that ``below`` lies in, links among them followed."""
    parents: set[_Directory] = set()
    while below:
        below = os.path.dirname(below)
        parents.add(_identity(os.path.join(top, below) if below else top))
    return parents
