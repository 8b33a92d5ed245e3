"""Second stage: pieces become shards. Texts, spans and documents are written for good; token ids go to
scratch files for the encoder.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3build.corpus import IdRegistry
from m3build.pipeline.places import Places
from m3build.pipeline.reject_lines import RejectSink, read_rejects
from m3build.pipeline.sharder import Shard, cut_shards
from m3build.records import Chunk, Reject
from m3build_formats.data_directory import FileTarget
from m3build_formats.manifest import FileEntry
from m3build_formats.shard_tables import ChunkRow, DocumentRow, Occurrence, write_chunks, write_documents

_NO_IDS = np.empty(0, np.uint32)


@dataclass(frozen=True, slots=True)
class StagedShard:
    """A shard whose texts are written: ``number`` counts from 0 in canonical order; token ids of row i are
    ``ids[bounds[i]:bounds[i+1]]``.
    """

    number: int
    rows: int
    document_rows: int
    chunks: FileEntry
    documents: FileEntry
    scratch: Path

    def token_ids(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Token ids of all rows one after the other, memory-mapped, and the bounds of each row."""
        path = _ids(self.scratch, self.number)
        # An empty file cannot be mapped.
        # A plain array: a slice of a memmap is an object of some 300 bytes.
        ids = np.asarray(np.memmap(path, np.uint32, "r")) if path.stat().st_size else _NO_IDS
        bounds: NDArray[np.int64] = np.load(_bounds(self.scratch, self.number), mmap_mode="r")
        return ids, bounds

    def ids(self) -> NDArray[np.uint8]:
        """Reference ids of all rows, shape (rows, 32), memory-mapped."""
        found: NDArray[np.uint8] = np.load(_keys(self.scratch, self.number), mmap_mode="r")
        return found

    def references(self, rows: Iterable[int]) -> list[NDArray[np.uint32]]:
        """Token ids of the given rows."""
        ids, bounds = self.token_ids()
        return [np.asarray(ids[bounds[row] : bounds[row + 1]]) for row in rows]


@dataclass(frozen=True, slots=True)
class ShardedCorpus:
    """The corpus as shards, the table of where each reference first stands, and what was counted."""

    shards: tuple[StagedShard, ...]
    places: Places
    counts: dict[str, int]
    rejects_path: Path

    def rejects(self) -> Iterator[Reject]:
        """Documents that were left out, in order."""
        return read_rejects(self.rejects_path)


def shard_corpus(
    documents: Iterable[tuple[DocumentRow, list[Chunk]]],
    minimum: int,
    near_duplicate: Callable[[bytes, str], bool] | None,
    on_reject: Callable[[Reject], None],
    target: FileTarget,
    scratch: Path,
    tell: Callable[[int], None] = lambda documents: None,
) -> ShardedCorpus:
    """Cut ``documents`` (canonical order) into shards and write each one's documents and chunks.

    ``near_duplicate(id, text)`` says which chunks to leave out. A document whose id was given before becomes
    a reject. ``tell`` hears how many documents more are done.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    places = Places(scratch / "places.sqlite")
    counts: Counter[str] = Counter()

    def leave_out(key: bytes, text: str) -> bool:
        if near_duplicate is None or not near_duplicate(key, text):
            return False
        counts["near_duplicates"] += 1
        return True

    def refuse(reject: Reject) -> None:
        rejects.write(reject)
        counts["rejects"] += 1
        on_reject(reject)

    shards: list[StagedShard] = []
    kept = scratch / "rejects.jsonl.zst"
    with ExitStack() as on_failure, IdRegistry() as registry, RejectSink(kept) as rejects:
        on_failure.callback(places.close)
        admitted = _admit(documents, registry, refuse, counts)
        cut = cut_shards(admitted, minimum, leave_out if near_duplicate else None, scratch)
        for number, shard in enumerate(cut):
            with closing(shard):
                staged, tokens = _write(number, shard, target, scratch)
            shards.append(staged)
            counts["distinct"] += places.add(number, shard.rows)
            counts["occurrences"] += shard.occurrences
            counts["chunks"] += len(shard.rows)
            counts["tokens"] += tokens
            tell(sum(part == 0 for _, _, part in shard.documents))
        on_failure.pop_all()
    counts["duplicates"] = counts["occurrences"] - counts["distinct"]
    return ShardedCorpus(tuple(shards), places, dict(counts), kept)


def _admit(
    documents: Iterable[tuple[DocumentRow, list[Chunk]]],
    registry: IdRegistry,
    refuse: Callable[[Reject], None],
    counts: Counter[str],
) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    for document, chunks in documents:
        admitted = registry.admit(document)
        if isinstance(admitted, Reject):
            refuse(admitted)
        else:
            counts["documents"] += 1
            counts["characters"] += admitted.characters
            yield admitted, chunks


def _write(number: int, shard: Shard, target: FileTarget, scratch: Path) -> tuple[StagedShard, int]:
    """The shard written, and how many tokens its references have."""
    documents = write_documents(
        target, (replace(document, chunks=here, part=part) for document, here, part in shard.documents)
    )
    bounds = array("q", [0])
    tokens = 0
    with _ids(scratch, number).open("wb") as ids:

        def rows() -> Iterator[ChunkRow]:
            nonlocal tokens
            found = zip(shard.rows, shard.chunks, shard.occurrences_by_row(), strict=True)
            for key, chunk, occurrences in found:
                token_ids = np.asarray(chunk.token_ids, np.uint32)
                ids.write(token_ids.tobytes())
                bounds.append(bounds[-1] + len(token_ids))
                tokens += len(chunk.token_ends)
                yield ChunkRow(
                    key,
                    chunk.text,
                    chunk.title,
                    chunk.token_ends,
                    [Occurrence(shard.documents[at][0].id, at, start, end) for at, start, end in occurrences],
                )

        chunks = write_chunks(target, rows())
    np.save(_bounds(scratch, number), np.frombuffer(bounds, np.int64))
    np.save(_keys(scratch, number), np.frombuffer(b"".join(shard.rows), np.uint8).reshape(-1, 32))
    staged = StagedShard(number, len(shard.rows), len(shard.documents), chunks, documents, scratch)
    return staged, tokens


def _keys(scratch: Path, number: int) -> Path:
    return scratch / f"{number:06d}.keys.npy"


def _ids(scratch: Path, number: int) -> Path:
    return scratch / f"{number:06d}.ids"


def _bounds(scratch: Path, number: int) -> Path:
    return scratch / f"{number:06d}.bounds.npy"
