"""Where chunk ids are found in a bank: the first 8 bytes of every id, sorted, with the row they came from.

16 bytes a row in memory, built in one pass over the ids; an answer is checked against the whole id in its
shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from m3build_formats.errors import UsageError

if TYPE_CHECKING:
    from m3build_formats.shard import Shard

_HEX: Final = re.compile(r"[0-9a-f]{1,64}", re.ASCII)
_KEY_HEX: Final = 16


class Location(NamedTuple):
    """A row of a shard, both counted from 0."""

    shard: int
    row: int


class IdIndex:
    """Sorted id prefixes of all shards; rows are numbered through all of them."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])
        keys = np.empty(int(self._starts[-1]), np.uint64)
        filled = 0
        for shard in shards:
            for ids in shard.chunk_ids():
                keys[filled : filled + len(ids)] = ids[:, :8].copy().view(">u8").reshape(-1)
                filled += len(ids)
        # Stable: equal ids stay in row order, so the first place of an id is the first found.
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, prefix: str) -> list[Location]:
        """All places of the one id that starts with ``prefix``; raises UsageError where none or several
        do."""
        prefix = prefix.lower()
        if not _HEX.fullmatch(prefix):
            raise UsageError(f"{prefix[:80]!r} is no chunk id: expected 1 to 64 hex digits")
        found: dict[bytes, list[Location]] = {}
        for place in self._with_key(prefix[:_KEY_HEX]):
            identity = self._id_at(place)
            if identity.hex().startswith(prefix):
                found.setdefault(identity, []).append(place)
            if len(found) > 1:
                shown = " and ".join(identity.hex()[: max(12, len(prefix) + 4)] for identity in found)
                raise UsageError(f"chunk id {prefix} is ambiguous: {shown} start with it; give more digits")
        if not found:
            raise UsageError(f"no chunk has an id that starts with {prefix}")
        return next(iter(found.values()))

    def locate(self, ids: Iterable[bytes]) -> dict[bytes, Location]:
        """First place of each id that is there."""
        found: dict[bytes, Location] = {}
        for identity in ids:
            for place in self._with_key(identity[:8].hex()):
                if self._id_at(place) == identity:
                    found[identity] = place
                    break
        return found

    def _with_key(self, prefix: str) -> Iterable[Location]:
        low = np.uint64(int(prefix.ljust(_KEY_HEX, "0"), 16))
        high = np.uint64(int(prefix.ljust(_KEY_HEX, "f"), 16))
        first, last = np.searchsorted(self._keys, low, "left"), np.searchsorted(self._keys, high, "right")
        for row in self._order[first:last].tolist():
            shard = int(np.searchsorted(self._starts, row, "right")) - 1
            yield Location(shard, row - int(self._starts[shard]))

    def _id_at(self, place: Location) -> bytes:
        return self._shards[place.shard].chunk_id(place.row)
