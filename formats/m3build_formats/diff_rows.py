"""Which documents and which texts come, go or change between two versions.

Shards whose documents and chunks files are the same on both sides are left out. Of the others every batch is
read once, its digest checked, and 33 bytes a chunk and 49 a document are kept. A text counts once however
many shards have it: one that seems to come or go is looked for in the shards that both sides have, so their
chunks are read too, but only where there is any such text.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m3build_formats.arrow_file import CheckedArrowFile
from m3build_formats.diff_documents import (
    ADDED,
    CHANGED,
    OTHER_METADATA,
    REMOVED,
    DocumentTable,
    classify,
)
from m3build_formats.diff_report import ChunkChanges, DocumentChanges, Listed
from m3build_formats.entries import FileEntry, ShardEntry
from m3build_formats.errors import CorruptError
from m3build_formats.mapped_file import MappedFile
from m3build_formats.open_bank import open_data
from m3build_formats.shard_schema import CHUNKS_SCHEMA, DOCUMENTS_SCHEMA
from m3build_formats.sorted_ids import ID, is_in, keep, mark, sorted_set

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from m3build_formats.sorted_ids import Ids


@dataclass(frozen=True, slots=True)
class Tables:
    """Shards of a bank at ``path``, in the bank's order."""

    path: Path
    shards: tuple[ShardEntry, ...]

    def without(self, shared: set[tuple[str, str]]) -> Tables:
        """The shards that the other side does not have."""
        return Tables(self.path, tuple(shard for shard in self.shards if _key(shard) not in shared))

    def only(self, shared: set[tuple[str, str]]) -> Tables:
        """The shards that both sides have, each once."""
        found = {_key(shard): shard for shard in self.shards if _key(shard) in shared}
        return Tables(self.path, tuple(found.values()))


def compare_rows(before: Tables, after: Tables, limit: int) -> tuple[DocumentChanges, ChunkChanges]:
    """What changed in documents and in texts; at most ``limit`` ids are listed of each kind of change.

    Raises CorruptError, ResourceError.
    """
    shared = {_key(shard) for shard in before.shards} & {_key(shard) for shard in after.shards}
    old, new = before.without(shared), after.without(shared)
    old_documents, gone = _read(old)
    new_documents, come = _read(new)
    classify(old_documents, new_documents)
    documents = _document_changes(old, new, old_documents, new_documents, limit)
    only_old, only_new = ~is_in(gone, come), ~is_in(come, gone)
    gone, come = keep(gone, only_old), keep(come, only_new)
    if len(gone) or len(come):
        gone, come = _in_no_shared_shard(after.only(shared), gone, come)
    added, removed = _listed_ids(come, limit), _listed_ids(gone, limit)
    return documents, ChunkChanges(added, removed, _encoded_anew(before, after))


def _key(shard: ShardEntry) -> tuple[str, str]:
    return shard.documents_file.sha256, shard.chunks.sha256


def _encoded_anew(before: Tables, after: Tables) -> int:
    """Rows of shards that had other memories; those that had none are encoded for the first time."""
    known: dict[str, set[str]] = {}
    for shard in before.shards:
        if shard.memories is not None:
            known.setdefault(shard.chunks.sha256, set()).add(shard.memories.sha256)
    return sum(
        shard.rows
        for shard in after.shards
        if shard.memories is not None
        and (texts := shard.chunks.sha256) in known
        and shard.memories.sha256 not in known[texts]
    )


def _read(tables: Tables) -> tuple[DocumentTable, Ids]:
    """The documents of the shards, and the set of their chunk ids."""
    with _data(tables) as directory:
        for shard in tables.shards:
            for entry in (shard.documents_file, shard.chunks):
                _check_size(entry, directory)
    documents = DocumentTable(sum(shard.documents for shard in tables.shards))
    ids = np.empty(sum(shard.rows for shard in tables.shards), ID)
    filled = 0
    with _data(tables) as directory:
        for shard in tables.shards:
            first = documents.rows
            for batch in _batches(shard.documents_file, directory, DOCUMENTS_SCHEMA):
                documents.add(batch)
            for batch in _batches(shard.chunks, directory, CHUNKS_SCHEMA):
                block = _ids_of(batch)
                ids[filled : filled + len(block)] = block
                filled += len(block)
                rows, owners = _occurrences(batch)
                if len(rows) and rows.max() >= shard.documents:
                    raise CorruptError(
                        f"{shard.chunks.name}: names document row {rows.max()} of a shard that has "
                        f"{shard.documents}; run m3build verify"
                    )
                documents.add_chunks(first + rows, block.view(np.uint64).reshape(-1, 4)[owners])
    documents.sort()
    return documents, sorted_set(ids)


def _check_size(entry: FileEntry, directory: int) -> None:
    """Before arrays are sized by it: a stranger's row count is bounded by bytes that are there."""
    MappedFile(entry, directory)
    if (entry.rows or 0) * ID.itemsize > entry.bytes:
        raise CorruptError(f"{entry.name}: has {entry.bytes} bytes, too few for {entry.rows} rows")


def _in_no_shared_shard(shared: Tables, gone: Ids, come: Ids) -> tuple[Ids, Ids]:
    """The ids of two sets that no shared shard has."""
    found_gone, found_come = np.zeros(len(gone), np.bool_), np.zeros(len(come), np.bool_)
    with _data(shared) as directory:
        for shard in shared.shards:
            for batch in _batches(shard.chunks, directory, CHUNKS_SCHEMA):
                block = _ids_of(batch)
                mark(found_gone, gone, block)
                mark(found_come, come, block)
    return keep(gone, ~found_gone), keep(come, ~found_come)


def _document_changes(
    old: Tables, new: Tables, old_documents: DocumentTable, new_documents: DocumentTable, limit: int
) -> DocumentChanges:
    totals = {
        kind: old_documents.count(kind) + new_documents.count(kind)
        for kind in (ADDED, REMOVED, CHANGED, OTHER_METADATA)
    }
    missing = {kind: min(limit, totals[kind]) for kind in (ADDED, REMOVED, CHANGED)}
    listed: dict[int, dict[str, None]] = {kind: {} for kind in missing}
    # Changed documents stand in the new shards, but for those whose last parts have gone.
    for tables, documents in ((new, new_documents), (old, old_documents)):
        for kind, identity in _classified(tables, documents, missing):
            if identity not in listed[kind]:
                listed[kind][identity] = None
                missing[kind] -= 1
    return DocumentChanges(
        added=Listed(totals[ADDED], tuple(listed[ADDED])),
        removed=Listed(totals[REMOVED], tuple(listed[REMOVED])),
        changed=Listed(totals[CHANGED], tuple(listed[CHANGED])),
        other_metadata=totals[OTHER_METADATA],
    )


def _classified(
    tables: Tables, documents: DocumentTable, missing: Mapping[int, int]
) -> Iterator[tuple[int, str]]:
    """Class and id of documents, as long as ids of a class that is there are missing."""
    there = [kind for kind in missing if documents.count(kind)]
    with _data(tables) as directory:
        for shard in tables.shards:
            for batch in _batches(shard.documents_file, directory, DOCUMENTS_SCHEMA):
                if not any(missing[kind] for kind in there):
                    return
                ids = batch.column("id").to_pylist()
                for kind, identity in zip(documents.classes_of(ids).tolist(), ids, strict=True):
                    if missing.get(kind):
                        yield kind, identity


@contextlib.contextmanager
def _data(tables: Tables) -> Iterator[int]:
    directory = open_data(tables.path)
    try:
        yield directory
    finally:
        os.close(directory)


def _batches(entry: FileEntry, directory: int, schema: Any) -> Iterator[Any]:
    """The record batches of a table; its pages are given back at the end."""
    file = MappedFile(entry, directory)
    yield from CheckedArrowFile(entry, file.data, schema).batches()
    file.release()


def _ids_of(batch: Any) -> Ids:
    column = batch.column("id")
    return np.frombuffer(column.buffers()[1], ID, len(column), column.offset * ID.itemsize)


def _occurrences(batch: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every occurrence in a batch of chunks: the document's row in its shard, and the chunk's row in the
    batch."""
    column = batch.column("occurrences")
    rows = column.flatten().field("row").to_numpy().astype(np.int64)
    return rows, np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))


def _listed_ids(ids: Ids, limit: int) -> Listed:
    # NumPy drops zero bytes at the end when it hands out a string.
    return Listed(len(ids), tuple(bytes(item).ljust(ID.itemsize, b"\0").hex() for item in ids[:limit]))
