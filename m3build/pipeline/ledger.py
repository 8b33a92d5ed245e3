"""Finished pieces of a build, remembered under what shaped them, so that a build that was stopped goes on
where it was.

A key is the SHA-256 of the canonical JSON of everything the piece depends on; the value is a small JSON
object, as a rule the name of a file and its counts. An entry is written with rename after the piece itself is
on disk: it is there whole or not at all. The ledger is scratch: once the version is committed
only the pieces of the corpus are kept, for the next build, and losing any of it costs only time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any


def piece_key(kind: str, shaped_by: Mapping[str, Any]) -> str:
    """Hex SHA-256 over the kind of piece and the JSON-able object of all that shapes it."""
    text = json.dumps([kind, shaped_by], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """The finished pieces under one directory, one small file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> dict[str, Any] | None:
        """The value put under ``key``, or None; an entry that cannot be read counts as absent, since it only
        costs work.
        """
        try:
            value = json.loads((self._directory / key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All entries that can be read, in the order of their keys."""
        for key in sorted(os.listdir(self._directory)):
            if (value := self.get(key)) is not None:
                yield key, value

    def drop(self, key: str) -> None:
        """Forget an entry."""
        (self._directory / key).unlink(missing_ok=True)

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget all entries but these."""
        for name in os.listdir(self._directory):
            if name not in keys:
                self.drop(name)

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Remember ``value`` under ``key``. Raises OSError when the disk does not take it."""
        target = self._directory / key
        temporary = target.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
