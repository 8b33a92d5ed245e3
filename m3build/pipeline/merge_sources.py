"""The banks of a merge, open: their documents as one stream, their memories by reference, their rejects.

Everything that is read is checked against its digest, and what is damaged is reported with the bank's name.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from m3build.corpus import Exclusion, IdRegistry
from m3build.pipeline.memory_stage import MemoryRows
from m3build.pipeline.places import Places
from m3build.pipeline.stored_corpus import stored_documents
from m3build.progress import Stage
from m3build.records import Chunk
from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.errors import CorruptError
from m3build_formats.manifest import FileEntry, Manifest
from m3build_formats.mapped_file import raise_descriptor_limit
from m3build_formats.open_bank import BankFiles
from m3build_formats.rejects_file import RejectRow
from m3build_formats.shard import Shard
from m3build_formats.shard_tables import DocumentRow


class MergeSources:
    """The current versions of several banks. A context manager. ``names`` are their paths as given, for
    messages.

    Raises on entering: UsageError (no bank there), CorruptError, ResourceError.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.opened: list[BankFiles] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        raise_descriptor_limit(sum(len(read_manifest(name).all_files()) for name in self.names))
        with ExitStack() as stack:
            self.opened = [stack.enter_context(open_bank(name)) for name in self.names]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def manifests(self) -> list[Manifest]:
        """The manifest of each bank."""
        return [files.manifest for files in self.opened]

    def summaries(self) -> list[dict[str, Any]]:
        """Name (without directories), version, digest and documents of each bank, as JSON."""
        return [
            {
                "name": os.path.basename(os.path.abspath(name)),
                "version": manifest.version,
                "sha256": manifest.sha256,
                "documents": manifest.counts["documents"],
            }
            for name, manifest in zip(self.names, self.manifests, strict=True)
        ]

    def documents_of(self, number: int) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
        """The documents of one bank with their chunks, in its order."""
        return _named(self.names[number], stored_documents(self.opened[number]))

    def documents(self) -> Iterator[tuple[int, DocumentRow, list[Chunk]]]:
        """The documents of all banks in canonical order, each with its bank's number."""
        streams = [self._placed(number) for number in range(len(self.names))]
        for (_, _, number), document, chunks in heapq.merge(*streams, key=lambda item: item[0]):
            yield number, document, chunks

    def memories(self, places: Places, stage: Stage) -> BankMemories:
        """The memories of all banks; ``places`` is filled with where each reference that has one stands."""
        rows: list[MemoryRows] = []
        for name, files in zip(self.names, self.opened, strict=True):
            for number, shard in enumerate(files.shards):
                ids = _named(name, shard.chunk_ids())
                here = enumerate(key.tobytes() for block in ids for key in block)
                [cold] = _named(name, (files.cold_of_shard(at) for at in [number]))
                places.add_rows(len(rows), ((key, row) for row, key in here if not cold[row]))
                shard.release()
                rows.append(_ShardMemories(name, shard))
                stage.advance(shard.rows)
        return BankMemories(rows, places, all_there=not any(manifest.cold for manifest in self.manifests))

    def rejects(self, exclusion: Exclusion, dropped: Counter[str]) -> Iterator[RejectRow]:
        """The rejects of bank after bank, but for those that an earlier bank has as often and those of files
        that are excluded; ``dropped`` counts these by kind."""
        with IdRegistry() as everywhere:
            for name, files in zip(self.names, self.opened, strict=True):
                with IdRegistry() as here:
                    for row in _named(name, files.rejects()):
                        text = "\0".join((row.kind, row.source, row.where, row.reason))
                        is_new = everywhere.count(f"{here.count(text)}\0{text}") == 1
                        if is_new and not exclusion.takes_file(row.source):
                            yield row
                        else:
                            dropped[row.kind] += 1

    def _placed(self, number: int) -> Iterator[tuple[tuple[str, int, int], DocumentRow, list[Chunk]]]:
        for document, chunks in self.documents_of(number):
            yield (document.source, document.position, number), document, chunks


class BankMemories:
    """The memories of all shards of all banks, as StoredMemories. With ``all_there`` every reference must
    have one."""

    def __init__(self, shards: Sequence[MemoryRows], places: Places, all_there: bool) -> None:
        self._shards = shards
        self._places = places
        self._all_there = all_there

    def of_shard(self, chunks: FileEntry) -> FileEntry | None:
        """None: no file of another bank is a file of this one."""
        return None

    def of_references(self, keys: Iterable[bytes]) -> Iterator[tuple[MemoryRows, int] | None]:
        """Where the memory of each reference lies; None where it has none yet. Raises CorruptError where it
        must have one and no bank holds it."""
        listed = list(keys)
        for key, place in zip(listed, self._places.firsts(listed), strict=True):
            if place is not None:
                yield self._shards[place[0]], place[1]
            elif self._all_there:
                raise CorruptError(
                    f"no bank has a memory of the chunk {key.hex()}, though one has its text, under another "
                    "id: find that bank with m3build verify"
                )
            else:
                yield None


class _ShardMemories:
    """The memories of a shard of a bank."""

    def __init__(self, name: str, shard: Shard) -> None:
        self._name = name
        self._shard = shard

    def memories(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Single rows, checked, uint8 (len(rows), row bytes)."""
        try:
            return self._shard.memories(rows)
        except CorruptError as error:
            raise CorruptError(f"{self._name}: {error}") from error
        finally:
            self._shard.release()


def _named(name: str, items: Iterator[Any]) -> Iterator[Any]:
    """Items read from a bank; says which where it is damaged."""
    try:
        yield from items
    except CorruptError as error:
        raise CorruptError(f"{name}: {error}") from error
