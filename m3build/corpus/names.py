"""Names of source files: what stands in a bank, in ids and in rejects for "this file".

- A name is the path relative to the SOURCE argument that the file was found through, ``/`` between the
  parts: a directory's files by their path in it, a file by its file name, a glob's matches by their path
  below the glob's last directory without wildcards.
- Bytes that are not UTF-8, control characters and surrogates are written ``\\xNN``, so that a name can be
  encoded, printed and read by people.
- A file found through several SOURCEs counts once, under the longest of its names.
- Different files that would have the same name get the names of as many parent directories in front as it
  takes to tell them apart, all of them the same number: ``a/intro.txt`` and ``b/intro.txt`` for the SOURCEs
  ``a`` and ``b``. Names without a namesake stay as they are. None of this depends on the order of SOURCEs
  or the working directory, and an absolute path never becomes a name.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(path: str) -> str:
    """A relative path as a name: ``/`` as separator, what cannot be encoded or printed as ``\\xNN``."""
    name = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace(os.sep, "/")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name)


def distinct_names(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """From pairs (absolute path, relative path) to a name for each absolute path; no two are equal."""
    relative: dict[str, str] = {}
    for path, below in found:
        if path not in relative or (len(below), below) > (len(relative[path]), relative[path]):
            relative[path] = below
    endings = _endings(relative)
    depths = {path: below.count(os.sep) + 1 for path, below in relative.items()}
    while True:
        groups: dict[str, list[str]] = defaultdict(list)
        for path, depth in depths.items():
            groups[_tail(path, depth) + endings[path]].append(path)
        clashes = [paths for paths in groups.values() if len(paths) > 1]
        if not clashes:
            return {paths[0]: name for name, paths in groups.items()}
        for paths in clashes:
            depth = max(depths[path] for path in paths) + 1
            depths.update(dict.fromkeys(paths, depth))


def _tail(path: str, depth: int) -> str:
    return printable(os.sep.join(path.split(os.sep)[1:][-depth:]))


def _endings(paths: Iterable[str]) -> dict[str, str]:
    """What to put behind the name of each path so that whole paths differ: nothing, but for names that only
    escaping makes equal (the byte FF beside a file that is called ``\\xff``), which get ``~2`` and so on."""
    endings: dict[str, str] = {}
    taken = {printable(path) for path in paths}
    used: set[str] = set()
    for path in sorted(paths, key=os.fsencode):
        whole = printable(path)
        number = 1
        while whole in used or (number > 1 and whole in taken):
            number += 1
            whole = f"{printable(path)}~{number}"
        used.add(whole)
        endings[path] = f"~{number}" if number > 1 else ""
    return endings
