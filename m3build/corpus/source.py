"""A file among the sources, a range of it that can be worked on alone, and the one exception that readers
raise.

All three hold plain values, so they travel between processes and into a record of finished work as they
are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read.

    ``path`` is where it lies (never written into a bank), ``name`` the path relative to its SOURCE with
    ``/`` between the parts, unique in the corpus, printable and encodable; ``bytes`` its size on disk,
    compressed if it is; ``format`` the name of a registered format; ``compression`` one of gz, bz2, xz, zst
    or None. ``named`` tells that the user named this very file: content that nothing can read is then a
    reject, where in a directory it would only be passed over.
    """

    path: str
    name: str
    bytes: int
    format: str
    compression: str | None = None
    named: bool = False


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A piece of a file: ``start`` to ``end`` (excluded) in the unit of its format: bytes (JSON lines), row
    groups (Parquet), record batches (Arrow). ``end`` None is the end of the file; every other format has
    only the range from 0 to None. ``first`` is the number of the first record in it, for formats that count
    records.
    """

    file: SourceFile
    start: int = 0
    end: int | None = None
    first: int = 0

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end is None


class BadInput(Exception):
    """Input that cannot be used from here on: ends the reading of one file and becomes one Reject. Never
    leaves the package."""

    def __init__(self, where: str, reason: str, kind: Literal["reject", "unsupported"] = "reject") -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason
        self.kind: Literal["reject", "unsupported"] = kind


WHOLE_FILE = "file"
"""``where`` of a reject that concerns a file and no place in it."""
