"""Where each distinct reference first stands in the bank being built: id → (shard, row), on disk, so that
memory does not grow with the corpus.

SQLite (standard library) keeps the ids ordered, which gives two things at once: look-ups while shards are
encoded, and uniform samples, since ids are SHA-256 hashes: the k smallest are a draw that depends on the set
of references alone, not on their order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Full from some 80,000 references on, so that larger corpora take no more; the system caches the file anyway.
_CACHE_KIB: Final = 4 * 1024
# Older SQLites take 999 parameters.
_KEYS_A_QUERY: Final = 900
_FIRSTS: Final = f"SELECT id, shard, row FROM places WHERE id IN ({','.join('?' * _KEYS_A_QUERY)})"


Place = tuple[bytes, int, int]
"""Id, shard and row of a reference."""

Drawn = NDArray[np.int32]
"""References that were drawn, (n, 2): the shard and the row of each, in the order of their ids. As tuples a
draw of 131,072 would be most of what a build holds."""


def by_shard(drawn: Drawn) -> Iterator[tuple[int, list[int], list[int]]]:
    """References that were drawn, a shard at a time, ascending: the shard, the rows there, ascending too, and
    where in ``drawn`` each stands."""
    order = np.lexsort((drawn[:, 1], drawn[:, 0]))
    shards, begins = np.unique(drawn[order, 0], return_index=True)
    # Of no places, split makes one part nevertheless.
    for shard, places in zip(shards.tolist(), np.split(order, begins[1:]), strict=False):
        yield shard, drawn[places, 1].tolist(), places.tolist()


class Places:
    """A table of reference ids (32 bytes) with the shard and row in which each first occurs."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        # Scratch data: a crash only costs the work of filling it again, so no journal and no syncing.
        self._db.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KIB};"
            "CREATE TABLE places (id BLOB PRIMARY KEY, shard INTEGER NOT NULL, row INTEGER NOT NULL) "
            "WITHOUT ROWID;"
        )

    def add(self, shard: int, ids: Iterable[bytes]) -> int:
        """Record the rows of a shard, whose ids differ; returns how many of the ids were new."""
        before = self._db.total_changes
        # Each id of a shard is there once, and in order they fill the table's pages one by one.
        keys = np.frombuffer(b"".join(ids), ">u8").reshape(-1, 4)
        order = np.lexsort(keys.T[::-1])
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR IGNORE INTO places VALUES (?, ?, ?)",
            ((keys[row].tobytes(), shard, row) for row in order.tolist()),
        )
        self._db.execute("COMMIT")
        return self._db.total_changes - before

    def add_rows(self, shard: int, rows: Iterable[tuple[bytes, int]]) -> None:
        """Record single rows of a shard, each with its id."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR IGNORE INTO places VALUES (?, ?, ?)", ((key, shard, row) for key, row in rows)
        )
        self._db.execute("COMMIT")

    def firsts(self, keys: Iterable[bytes]) -> Iterator[tuple[int, int] | None]:
        """Shard and row where each key first stands, or None; in order, with one query for hundreds."""
        remaining = iter(keys)
        while block := list(islice(remaining, _KEYS_A_QUERY)):
            # Always the same statement, since SQLite's module keeps 128 different ones, 100 KB each: the last
            # keys of a shard are made up with NULL, which is no id.
            rows = self._db.execute(_FIRSTS, block + [None] * (_KEYS_A_QUERY - len(block)))
            found = {key: (shard, row) for key, shard, row in rows}
            yield from map(found.get, block)

    def smallest(self, count: int, skip: int = 0) -> Drawn:
        """Where ``count`` references stand, after the ``skip`` with the smallest ids: a uniform draw by
        hash."""
        found = self._db.execute("SELECT shard, row FROM places ORDER BY id LIMIT ? OFFSET ?", (count, skip))
        return np.fromiter(chain.from_iterable(found), np.int32).reshape(-1, 2)

    def smallest_ids(self, count: int) -> Iterator[bytes]:
        """The ``count`` smallest ids, ascending."""
        for (key,) in self._db.execute("SELECT id FROM places ORDER BY id LIMIT ?", (count,)):
            yield key

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM places").fetchone()[0]
        return count

    def __iter__(self) -> Iterator[Place]:
        return iter(self._db.execute("SELECT id, shard, row FROM places ORDER BY shard, row"))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
