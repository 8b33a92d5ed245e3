"""From SOURCE arguments to the list of files, in canonical order (by name).

A SOURCE is a directory, a file, a glob or ``-`` for JSON lines on standard input, which must have been
spooled to disk before. What exists under the very name of a SOURCE is that, even if the name has a ``*`` in
it. A directory that a glob matches is walked. ``**`` stands for any number of directories; such a glob is
matched against a walk, since the standard library's follows links in circles.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from m3build.corpus.detect import detect
from m3build.corpus.names import distinct_names
from m3build.corpus.read import unreadable
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceFile
from m3build.corpus.walk import NOT_REGULAR, walk
from m3build.records import Reject
from m3build_formats.bank import looks_like_bank
from m3build_formats.errors import UsageError

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class _Found:
    """A path that a SOURCE stands for: absolute, relative to the SOURCE, named by the user, and what is
    wrong."""

    path: str
    below: str
    named: bool = False
    problem: BadInput | None = None


def discover(
    sources: Sequence[str], on_reject: Callable[[Reject], None], standard_input: SourceFile | None = None
) -> list[SourceFile]:
    """All files of the sources, sorted by name. What cannot be read goes to ``on_reject``, sorted by name
    too.

    ``standard_input`` is the spooled file that ``-`` stands for. Raises UsageError for a path that does not
    exist or is a bank, a glob that matches nothing, and ``-`` without a spooled file.
    """
    if not sources:
        raise UsageError("no SOURCE given: name a directory, a file, a glob, or - for standard input")
    files: list[SourceFile] = []
    found: list[_Found] = []
    for source in dict.fromkeys(sources):
        if source != STANDARD_INPUT:
            found.extend(_expand(source))
        elif standard_input is None:
            raise UsageError("- (standard input) can only be read once it has been spooled to a file")
        else:
            files.append(standard_input)
    names = distinct_names((item.path, item.below) for item in found)
    named = {item.path for item in found if item.named}
    problems = {item.path: item.problem for item in found if item.problem is not None}
    rejects: list[Reject] = []
    for path, name in names.items():
        try:
            if path in problems:
                raise problems[path]
            form, compression = detect(path, path in named)
            files.append(SourceFile(path, name, os.stat(path).st_size, form, compression, path in named))
        except BadInput as problem:
            rejects.append(Reject(name, problem.where, problem.reason, problem.kind))
        except OSError as error:
            rejects.append(Reject(name, WHOLE_FILE, unreadable(error)))
    for reject in sorted(rejects, key=lambda reject: reject.source):
        on_reject(reject)
    return sorted(files, key=lambda file: file.name)


def _expand(source: str) -> Iterator[_Found]:
    """Everything that a SOURCE stands for."""
    if os.path.lexists(source):
        yield from _expand_path(source)
        return
    if not glob.has_magic(source):
        raise UsageError(f"no such file or directory: {source}")
    base = source
    while glob.has_magic(base):
        base = os.path.dirname(base)
    top = os.path.abspath(base or os.curdir)
    pattern = os.path.relpath(os.path.abspath(source), top).split(os.sep)
    matched = False
    for found in _walked(top) if "**" in pattern else _globbed(source, top):
        if "**" not in pattern or _matches(found.below.split(os.sep), pattern):
            matched = True
            yield found
    if not matched:
        raise UsageError(f"no file matches {source}")


def _expand_path(path: str) -> Iterator[_Found]:
    """A SOURCE that exists under its very name: a directory is walked, a file is named by its file name."""
    absolute = os.path.abspath(path)
    name = os.path.basename(absolute)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        yield _Found(absolute, name, True, BadInput(WHOLE_FILE, unreadable(error)))
        return
    if stat.S_ISDIR(mode):
        if looks_like_bank(absolute):
            raise UsageError(f"{path} is a bank: name what it was made of, or join banks with m3build merge")
        yield from _walked(absolute)
    elif stat.S_ISREG(mode):
        yield _Found(absolute, name, True)
    else:
        raise UsageError(f"not a file or directory: {path}; pipe JSON lines to the SOURCE - instead")


def _globbed(pattern: str, top: str) -> Iterator[_Found]:
    """The matches of a glob without ``**``, and what lies in those that are directories."""
    for match in sorted(glob.glob(pattern), key=os.fsencode):
        absolute = os.path.abspath(match)
        below = os.path.relpath(absolute, top)
        try:
            mode = os.stat(absolute).st_mode
        except OSError as error:
            yield _Found(absolute, below, False, BadInput(WHOLE_FILE, unreadable(error)))
            continue
        if stat.S_ISDIR(mode):
            for found in _walked(absolute):
                yield _Found(found.path, os.path.join(below, found.below), False, found.problem)
        else:
            yield _Found(absolute, below, False, None if stat.S_ISREG(mode) else NOT_REGULAR)


def _walked(top: str) -> Iterator[_Found]:
    for below, problem in walk(top):
        path = os.path.join(top, below) if below else top
        yield _Found(path, below or os.path.basename(top), False, problem)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path, or a directory that it lies in, matches a glob given as its parts."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
