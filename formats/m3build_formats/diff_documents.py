"""The documents of the shards that differ, on one side of a comparison: 49 bytes each, found by id.

A document is known by 128 bits of the SHA-256 of its id. Its state is a sum: of its text's SHA-256, and of
the ids of its chunks, modulo 2^128 in two halves. So it does not matter how shards cut a document into parts,
and parts in shards that both sides have, which are not read, are left out of both sums alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME, ADDED, REMOVED, CHANGED, OTHER_METADATA = range(5)

# Words of a document: two of its key, two of its state, one of title, source and metadata, and how often it
# starts in these shards (0 where its first part stands in a shard that both sides have).
_WORDS: Final = 6
_KEY, _STATE, _METADATA, _STARTS = slice(0, 2), slice(2, 4), 4, 5
_RECORD: Final = np.dtype(f"S{8 * _WORDS}")
_BLOCK: Final = 1 << 15
# Odd, so that a text's own hash is not taken for the id of a chunk with the same text.
_TEXT_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)


class DocumentTable:
    """``capacity`` rows of documents at most. Rows are added first, then `sort` makes them findable, then
    `classify` fills ``classes`` (uint8, one for each distinct document)."""

    def __init__(self, capacity: int) -> None:
        self._words = np.zeros((capacity, _WORDS), np.uint64)
        self.rows = 0
        self.classes = np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._words)

    def add(self, batch: Any) -> None:
        """Adds the documents of a record batch."""
        words = self._words[self.rows : self.rows + batch.num_rows]
        self.rows += batch.num_rows
        starts = (batch.column("part").to_numpy() == 0).astype(np.uint64)
        words[:, _KEY] = _keys(batch.column("id").to_pylist())
        texts = np.frombuffer(b"".join(batch.column("sha256").to_pylist()), np.uint64).reshape(-1, 4)
        words[:, _STATE] = texts[:, :2] * _TEXT_FACTOR * starts[:, None]
        described = (batch.column(name).to_pylist() for name in ("title", "source", "metadata"))
        words[:, _METADATA] = _hashed(map(repr, zip(*described, strict=True)))[:, 0] * starts
        words[:, _STARTS] = starts

    def add_chunks(self, rows: NDArray[np.int64], ids: NDArray[np.uint64]) -> None:
        """Adds occurrences of chunks to their documents: rows of this table, and for each the first two words
        of the chunk's id, (n, 2)."""
        for half in range(2):
            np.add.at(self._words[:, _STATE.start + half], rows, ids[:, half])

    def sort(self) -> None:
        """Brings the documents into the order in which they are found, parts of one document together."""
        self._words.view(_RECORD).reshape(-1).sort()
        if not len(self):
            return
        keys = self._words[:, _KEY]
        first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        if len(first) < len(self):
            joined = np.add.reduceat(self._words, first)
            joined[:, _KEY] = keys[first]
            self._words = joined
        self.classes = np.zeros(len(self), np.uint8)

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Place of each key, (n, 2), and whether it is there at all."""
        if not len(self):
            return np.zeros(len(keys), np.intp), np.zeros(len(keys), np.bool_)
        wanted = np.zeros((len(keys), _WORDS), np.uint64)
        wanted[:, _KEY] = keys
        places = np.searchsorted(self._words.view(_RECORD).reshape(-1), wanted.view(_RECORD).reshape(-1))
        places = np.minimum(places, len(self) - 1)
        return places, (self._words[places, _KEY] == keys).all(axis=1)

    def classes_of(self, ids: Sequence[str]) -> NDArray[np.uint8]:
        """The class of each document by its id; all must be there."""
        return self.classes[self.find(_keys(ids))[0]]

    def count(self, kind: int) -> int:
        """Documents of a class."""
        return int(np.count_nonzero(self.classes == kind))


def classify(old: DocumentTable, new: DocumentTable) -> None:
    """Gives every document of two sorted tables its class. One that both have gets it in ``new``; ``old``
    says SAME there.

    A document that only one table has, and does not start there, has its first part in a shard that both
    sides have: its later chunks have come or gone, so it is CHANGED.
    """
    seen = np.zeros(len(old), np.bool_)
    for start in range(0, len(new), _BLOCK):
        words = new._words[start : start + _BLOCK]
        places, found = old.find(words[:, _KEY])
        seen[places[found]] = True
        classes = np.where(words[:, _STARTS] > 0, ADDED, CHANGED).astype(np.uint8)
        others = old._words[places[found]]
        mine = words[found]
        same_state = (mine[:, _STATE] == others[:, _STATE]).all(axis=1)
        same_metadata = mine[:, _METADATA] == others[:, _METADATA]
        classes[found] = np.where(same_state, np.where(same_metadata, SAME, OTHER_METADATA), CHANGED)
        new.classes[start : start + len(words)] = classes
    absent = ~seen
    starts = old._words[absent, _STARTS] > 0
    old.classes[absent] = np.where(starts, np.uint8(REMOVED), np.uint8(CHANGED))


def _keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    return _hashed(ids)


def _hashed(texts: Any) -> NDArray[np.uint64]:
    """The first 16 bytes of the SHA-256 of each text, as (n, 2)."""
    digests = b"".join(hashlib.sha256(text.encode("utf-8")).digest()[:16] for text in texts)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)
