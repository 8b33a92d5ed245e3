"""Memories of each shard: only references that no shard and no earlier version has yet go through the model.

A shard's rows are fixed in width, so they are put into a scratch file in whatever order batches come, and
then streamed in row order.

A build of text only encodes nothing: what is stored somewhere already is kept, all other rows are cold, and a
shard whose rows are all cold has no memories file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m3build.pipeline.freed_memory import give_back_freed_memory
from m3build.pipeline.ledger import Ledger, piece_key
from m3build.pipeline.places import Places
from m3build.pipeline.row_file import RowFile
from m3build.pipeline.shard_stage import StagedShard
from m3build.pipeline.written import cold_mask, memory_rows, reference_ids
from m3build.progress import Stage
from m3build_formats.cold_rows import cold_rows, empty_rows
from m3build_formats.data_directory import DataDirectory
from m3build_formats.manifest import FileEntry, VersionContents
from m3build_formats.shard_tables import write_memories

# References that are handed to the encoder at a time: enough for its length groups to fill their batches.
WINDOW_REFERENCES = 4096
STREAM_BYTES = 1 << 22

Encode = Callable[[Sequence[NDArray[np.uint32]]], Iterator[tuple[tuple[int, ...], NDArray[np.uint8]]]]
"""Token ids of references → (their indices, memory rows uint8 (n, row bytes)), batch by batch."""


class MemoryRows(Protocol):
    """Memory rows that lie somewhere."""

    def memories(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Single rows, uint8 (len(rows), row bytes)."""
        ...


class StoredMemories(Protocol):
    """Memories that may be copied, since their code key is that of the build."""

    def of_shard(self, chunks: FileEntry) -> FileEntry | None:
        """The memories of a shard whose chunks are the same bytes, if they are a file of the bank's data
        directory."""
        ...

    def of_references(self, keys: Iterable[bytes]) -> Iterator[tuple[MemoryRows, int] | None]:
        """Where the memory of each reference lies, and its row there, which is not cold; None where there is
        none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MemoryFile:
    """A memories file of a data directory, hashed when it was written or by the caller. Equal only to itself:
    hashing an entry, with all its digests, for every row would take longer than copying the row."""

    data: Path
    entry: FileEntry

    def memories(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Single rows, uint8 (len(rows), row bytes)."""
        return memory_rows(self.data, self.entry, rows)


class OldMemories:
    """Memories that lie in the bank's data directory, as StoredMemories: those of the current version, and
    those that a build wrote which was stopped.

    ``shards`` are pairs of chunks and memories, each with the number of bytes of codes where some of its rows
    may be cold. ``places``, empty, is filled with where references stand that are not cold. A file is hashed
    before the first row is taken from it; a damaged one counts as absent.
    """

    def __init__(
        self, shards: Iterable[tuple[FileEntry, FileEntry, int | None]], places: Places, data: DataDirectory
    ) -> None:
        self._shards: list[MemoryFile] = []
        self._by_chunks: dict[str, FileEntry] = {}
        self._places = places
        self._data = data
        self._sound: dict[str, bool] = {}
        self._partial: set[str] = set()
        for chunks, memories, codes_bytes in shards:
            # A damaged file is as good as none: what it held is encoded again.
            if not data.is_sound(chunks):
                continue
            self._by_chunks.setdefault(chunks.sha256, memories)
            number = len(self._shards)
            self._shards.append(MemoryFile(data.path, memories))
            ids = reference_ids(data.path, chunks)
            if codes_bytes is None:
                places.add(number, ids)
            elif (entry := self._checked(memories)) is not None:
                cold = cold_mask(data.path, entry, codes_bytes)
                if cold.any():
                    self._partial.add(entry.name)
                places.add_rows(number, ((key, row) for row, key in enumerate(ids) if not cold[row]))

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def of_shard(self, chunks: FileEntry) -> FileEntry | None:
        """The memories of a shard whose chunks are the same bytes, where none of its rows is cold."""
        entry = self._by_chunks.get(chunks.sha256)
        return self._checked(entry) if entry is not None and entry.name not in self._partial else None

    def of_references(self, keys: Iterable[bytes]) -> Iterator[tuple[MemoryFile, int] | None]:
        """The memories file and row of each reference, None where there is none."""
        for place in self._places.firsts(keys):
            if place is None or self._checked((file := self._shards[place[0]]).entry) is None:
                yield None
            else:
                yield file, place[1]

    def _checked(self, entry: FileEntry) -> FileEntry | None:
        if entry.name not in self._sound:
            self._sound[entry.name] = self._data.is_sound(entry)
        return entry if self._sound[entry.name] else None


def memories_of(version: VersionContents) -> Iterator[tuple[FileEntry, FileEntry, int | None]]:
    """What ``OldMemories`` takes of a version."""
    for shard in version.shards:
        if shard.memories is not None:
            yield shard.chunks, shard.memories, version.row_codes_bytes if version.cold else None


def finished_memories(ledger: Ledger, code_key: str) -> Iterator[tuple[FileEntry, FileEntry, None]]:
    """What ``OldMemories`` takes of builds that were stopped: shards that they had encoded, whatever their
    sources were."""
    for _, done in ledger.entries():
        if done.get("code_key") == code_key:
            yield FileEntry.from_json(done["chunks"]), FileEntry.from_json(done["entry"]), None


class MemoryWriter:
    """Writes the memories of shards one after the other; ``counts`` says how many references were encoded,
    reused, repeated and left cold. Those that are stored nowhere are left cold where none is encoded.
    """

    def __init__(
        self,
        row_bytes: int,
        codes_bytes: int,
        code_key: str,
        places: Places,
        old: StoredMemories | None,
        data: DataDirectory,
        scratch: Path,
        ledger: Ledger,
    ) -> None:
        self._row_bytes = row_bytes
        self._codes_bytes = codes_bytes
        self._code_key = code_key
        self._places = places
        self._old = old
        self._data = data
        self._scratch = scratch
        self._ledger = ledger
        self._written: list[MemoryFile | None] = []
        self.counts: Counter[str] = Counter()

    def write(self, shard: StagedShard, stage: Stage, encode: Encode | None) -> FileEntry | None:
        """Memories of a shard, rows as in its chunks; None where all of them are cold. Shards must come in
        order, for later ones copy from earlier ones. ``encode`` is not kept: it has buffers that what comes
        after encoding should not find.
        """
        key = piece_key("memories", {"code_key": self._code_key, "chunks": shard.chunks.sha256})
        entry = self._finished(key, shard, encode is not None)
        if entry is None:
            entry = self._make(shard, stage, encode)
            give_back_freed_memory()
            # A file with cold rows must not be taken for finished by a build that encodes.
            if entry is not None and encode is not None:
                self._ledger.put(
                    key,
                    {
                        "entry": entry.to_json(),
                        "chunks": shard.chunks.to_json(),
                        "code_key": self._code_key,
                    },
                )
        else:
            self.counts["reused"] += shard.rows
            stage.advance(shard.rows)
        self._written.append(MemoryFile(self._data.path, entry) if entry is not None else None)
        return entry

    def _finished(self, key: str, shard: StagedShard, encodes: bool) -> FileEntry | None:
        if self._old is not None and (entry := self._old.of_shard(shard.chunks)):
            return entry
        done = self._ledger.get(key) if encodes else None
        if done is None:
            return None
        entry = FileEntry.from_json(done["entry"])
        return entry if self._data.is_sound(entry) else None

    def _make(self, shard: StagedShard, stage: Stage, encode: Encode | None) -> FileEntry | None:
        if encode is None and self._old is None and not any(self._written):
            # No memory is stored anywhere.
            self.counts["cold"] += shard.rows
            stage.advance(shard.rows)
            return None
        step = max(1, STREAM_BYTES // self._row_bytes)
        with closing(RowFile(self._row_bytes, self._scratch)) as rows:
            missing = self._copy(shard, rows, stage)
            if encode is None:
                self.counts["cold"] += len(missing)
                stage.advance(len(missing))
                if len(missing) == shard.rows:
                    return None
                for lo in range(0, len(missing), step):
                    cold = missing[lo : lo + step]
                    rows.put(cold, empty_rows(len(cold), self._row_bytes, self._codes_bytes))
            else:
                self._fill(shard, rows, missing, encode, stage)
            return write_memories(self._data, rows.blocks(shard.rows, step), self._row_bytes)

    def _fill(
        self, shard: StagedShard, rows: RowFile, missing: list[int], encode: Encode, stage: Stage
    ) -> None:
        for lo in range(0, len(missing), WINDOW_REFERENCES):
            window = missing[lo : lo + WINDOW_REFERENCES]
            for indices, codes in encode(shard.references(window)):
                rows.put([window[i] for i in indices], codes)
                self.counts["encoded"] += len(indices)
                stage.advance(len(indices))

    def _copy(self, shard: StagedShard, rows: RowFile, stage: Stage) -> list[int]:
        """Put the rows that are stored somewhere already; returns the others, ascending."""
        missing: list[int] = []
        found: dict[MemoryRows, list[tuple[int, int]]] = defaultdict(list)
        repeated: set[MemoryRows] = set()
        keys = [raw.tobytes() for raw in shard.ids()]
        others: list[int] = []
        for row, first in enumerate(self._places.firsts(keys)):
            if first is None or first[0] >= shard.number:
                others.append(row)
            elif (earlier := self._written[first[0]]) is not None:
                found[earlier].append((row, first[1]))
                repeated.add(earlier)
            else:
                missing.append(row)
        if self._old is None:
            missing += others
        else:
            stored = self._old.of_references(keys[row] for row in others)
            for row, before in zip(others, stored, strict=True):
                if before is None:
                    missing.append(row)
                else:
                    found[before[0]].append((row, before[1]))
        for source, pairs in found.items():
            here, there = np.array(pairs, np.int64).T
            copied = source.memories(there)
            rows.put(here, copied)
            cold = cold_rows(copied, self._codes_bytes)
            missing += here[cold].tolist()
            warm = len(pairs) - int(cold.sum())
            self.counts["repeated" if source in repeated else "reused"] += warm
            stage.advance(warm)
        return sorted(missing)
