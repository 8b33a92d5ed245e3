"""One hash over all source files, as a build reads them and as a later one finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple

from m3build.corpus import SourceFile
from m3build.pipeline.file_hashes import FileHash
from m3build.pipeline.units import Unit
from m3build.records import Reject


class SourcesDigest:
    """SHA-256 over the names, formats and contents of files in canonical order, and over what ``rejects``
    discovery had."""

    def __init__(self, rejects: Iterable[Reject]) -> None:
        self._hash = hashlib.sha256()
        self._last: str | None = None
        for reject in rejects:
            self._take(["reject", *astuple(reject)])

    def add(self, file: SourceFile, sha256: str) -> None:
        """The next file; one that comes again right away counts once."""
        if file.path != self._last:
            self._last = file.path
            self._take(["file", file.name, file.format, file.compression, file.named, sha256])

    def add_all(self, unit: Unit, hashes: Mapping[str, FileHash]) -> None:
        """The files of a unit, given their hashes by path."""
        for item in unit.ranges:
            self.add(item.file, hashes[item.file.path].sha256)

    def hexdigest(self) -> str:
        """Of all so far."""
        return self._hash.hexdigest()

    def _take(self, value: Sequence[object]) -> None:
        self._hash.update(json.dumps(value).encode() + b"\n")
