"""Cuts a corpus into units of work: neighbouring files together while they are small, each range of a large
one alone.

Where a unit ends is decided by the names of the files near its end, as shards are cut: so a file that comes,
goes or changes its size concerns its own unit and at most the next one, and the others stay what they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from m3build.corpus import SourceFile, SourceOptions, SourceRange, split

# A unit has at least UNIT_BYTES of input as it lies on disk, some twice as many on average, and not many more
# than MAX_UNIT_BYTES, unless a single range has them.
UNIT_BYTES = 1 << 20
MAX_UNIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Unit:
    """Neighbouring ranges that are read and cut together."""

    ranges: tuple[SourceRange, ...]
    bytes: int


def units_of(files: Iterable[SourceFile], options: SourceOptions) -> Iterator[Unit]:
    """The units of files that come in canonical order."""
    group: list[SourceRange] = []
    size = 0
    for file in files:
        ranges = split(file, options)
        if group and (len(ranges) > 1 or size >= MAX_UNIT_BYTES or (size >= UNIT_BYTES and _opens(file))):
            yield Unit(tuple(group), size)
            group, size = [], 0
        if len(ranges) > 1:
            for item in ranges:
                yield Unit((item,), file.bytes // len(ranges))
        else:
            group += ranges
            size += file.bytes
    if group:
        yield Unit(tuple(group), size)


def _opens(file: SourceFile) -> bool:
    """Whether a unit begins at this file if the one before has its minimum: such files lie about UNIT_BYTES
    apart, however large they are."""
    hashed = int.from_bytes(hashlib.sha256(file.name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return hashed * UNIT_BYTES < file.bytes << 64
