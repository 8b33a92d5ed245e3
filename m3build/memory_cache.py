"""The memories used last, decoded, within a fixed number of bytes (Memory³, §3.1: neighbouring chunks
retrieve the same references).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What the cache holds: values that know their size."""

    @property
    def nbytes(self) -> int: ...


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a bank's cache did since the bank was opened.

    ``hits`` and ``misses`` count memories; one that is asked for several times in a call counts once.
    ``bytes_read``: of codes and positions, from the bank's files. ``bytes_held`` (never more than
    ``capacity``): of the ``entries`` decoded memories in the cache, on whatever devices they lie.
    """

    hits: int
    misses: int
    bytes_read: int
    bytes_held: int
    capacity: int
    entries: int


class MemoryCache(Generic[Key, Value]):
    """Least recently used entries leave first. Thread-safe; values are shared, so nobody may change one."""

    def __init__(self, capacity: int) -> None:
        """``capacity``: bytes; 0 keeps nothing."""
        self.capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._held = self._hits = self._misses = self._read = 0

    def get(self, keys: Sequence[Key]) -> list[Value | None]:
        """The entry of each key, None where there is none; those found are now the ones used last."""
        with self._lock:
            found = [self._entries.get(key) for key in keys]
            for key, value in zip(keys, found, strict=True):
                if value is not None:
                    self._entries.move_to_end(key)
            missing = sum(value is None for value in found)
            self._hits += len(found) - missing
            self._misses += missing
        return found

    def put(self, entries: Sequence[tuple[Key, Value]], bytes_read: int) -> None:
        """Keep entries, the last of them as the one used last; ``bytes_read`` were read to make them."""
        with self._lock:
            self._read += bytes_read
            for key, value in entries:
                if value.nbytes > self.capacity:
                    continue
                if key in self._entries:
                    self._held -= self._entries.pop(key).nbytes
                while self._held + value.nbytes > self.capacity:
                    self._held -= self._entries.popitem(last=False)[1].nbytes
                self._entries[key] = value
                self._held += value.nbytes

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._entries.clear()
            self._held = 0

    def info(self) -> CacheInfo:
        """The counts so far."""
        with self._lock:
            return CacheInfo(
                self._hits, self._misses, self._read, self._held, self.capacity, len(self._entries)
            )
