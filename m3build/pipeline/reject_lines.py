"""Rejects that wait on disk, a line of JSON each: there may be as many of them as records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import IO, Self

import zstandard

from m3build.pipeline.whole_files import place, temporary_of
from m3build.records import Reject


class RejectSink:
    """Writes rejects to ``path`` as they come; the file appears under its name when the block ends well, and
    not at all without a reject. Raises OSError when the disk does not take it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = temporary_of(path)
        self._stream: IO[str] | None = None

    def write(self, reject: Reject) -> None:
        """Take a reject."""
        stream = self._stream
        if stream is None:
            stream = self._stream = zstandard.open(self._temporary, "wt", encoding="ascii")
        # Escaped, so that a file name that is not UTF-8 (lone surrogates) comes back as it was.
        stream.write(json.dumps(list(astuple(reject))) + "\n")

    def __enter__(self) -> Self:
        # What a process that ended left there is not of this try.
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
            place(self._temporary, self._path, kind is None)


def read_rejects(path: Path) -> Iterator[Reject]:
    """The rejects in order; none where there is no file."""
    if path.exists():
        with zstandard.open(path, "rt", encoding="ascii") as lines:
            for line in lines:
                yield Reject(*json.loads(line))
