"""From SOURCE arguments to the list of files, in canonical order (by name).

A SOURCE is a directory, a file, a glob (``**`` crosses directories, hidden files are left out as in a
directory) or ``-`` for JSON lines on standard input, which must have been spooled to disk before. What
exists under the very name of a SOURCE is that, even if the name has a ``*`` in it.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from m3build.corpus.detect import detect
from m3build.corpus.names import distinct_names, printable
from m3build.corpus.read import unreadable
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceFile
from m3build.corpus.walk import walk
from m3build.records import Reject
from m3build_formats.errors import UsageError

STANDARD_INPUT = "-"


def discover(
    sources: Sequence[str], on_reject: Callable[[Reject], None], standard_input: SourceFile | None = None
) -> list[SourceFile]:
    """All files of the sources, sorted by name; what cannot be a source file goes to ``on_reject``, in
    order of name too.

    ``standard_input`` is the spooled file that ``-`` stands for. Raises UsageError for a path that does not
    exist, a glob that matches nothing, and ``-`` without a spooled file.
    """
    if not sources:
        raise UsageError(
            "no SOURCE given: name a directory, a file, a glob, or - for JSON lines on standard input"
        )
    found: list[tuple[str, str]] = []
    named: set[str] = set()
    bad: dict[tuple[str, str], Reject] = {}

    def note(below: str, problem: BadInput) -> None:
        name = printable(below)
        bad[name, problem.reason] = Reject(name, problem.where, problem.reason, problem.kind)

    files: list[SourceFile] = []
    for source in dict.fromkeys(sources):
        if source == STANDARD_INPUT:
            if standard_input is None:
                raise UsageError("- (standard input) can only be read once it has been spooled to a file")
            files.append(standard_input)
            continue
        for path, below, is_named in _expand(source, note):
            found.append((path, below))
            if is_named:
                named.add(path)
    for path, name in distinct_names(found).items():
        try:
            form, compression = detect(path, path in named)
            size = os.stat(path).st_size
        except BadInput as problem:
            bad[name, problem.reason] = Reject(name, problem.where, problem.reason, problem.kind)
        except OSError as error:
            bad[name, ""] = Reject(name, WHOLE_FILE, unreadable(error))
        else:
            files.append(SourceFile(path, name, size, form, compression, path in named))
    for _, reject in sorted(bad.items()):
        on_reject(reject)
    return sorted(files, key=lambda file: file.name)


def _expand(source: str, note: Callable[[str, BadInput], None]) -> Iterator[tuple[str, str, bool]]:
    """(absolute path, relative path, whether the user named this very file) of every file that a SOURCE
    stands for."""
    if os.path.lexists(source):
        yield from _expand_path(source, os.path.dirname(source), True, note)
        return
    if not glob.has_magic(source):
        raise UsageError(f"no such file or directory: {source}")
    base = _fixed_part(source)
    matches = sorted(glob.glob(source, recursive=True), key=os.fsencode)
    if not matches:
        raise UsageError(f"no file matches {source}")
    for match in matches:
        # A "**" matches directories too, and the files in them once more by their own path; distinct_names
        # takes each once.
        if not (os.path.isdir(match) and "**" in source):
            yield from _expand_path(match, base, False, note)


def _fixed_part(pattern: str) -> str:
    """The leading directories of a glob that have no wildcard."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern


def _expand_path(
    path: str, base: str, is_source: bool, note: Callable[[str, BadInput], None]
) -> Iterator[tuple[str, str, bool]]:
    """A directory is walked, anything else taken as it is; names are relative to ``base``, or for a SOURCE
    directory to itself."""
    absolute = os.path.abspath(path)
    below_base = os.path.relpath(absolute, os.path.abspath(base or os.curdir))
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        note(below_base, BadInput(WHOLE_FILE, unreadable(error)))
        return
    if stat.S_ISREG(mode):
        yield absolute, below_base, is_source
    elif stat.S_ISDIR(mode):
        prefix = "" if is_source else below_base

        def note_below(below: str, problem: BadInput) -> None:
            note(os.path.join(prefix, below), problem)

        for below in walk(absolute, note_below):
            yield os.path.join(absolute, below), os.path.join(prefix, below), False
    elif is_source:
        raise UsageError(f"not a file or directory: {path}; pipe JSON lines to the SOURCE - instead")
    else:
        note(below_base, BadInput(WHOLE_FILE, "not a regular file (a pipe, socket or device)", "unsupported"))
