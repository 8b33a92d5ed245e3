"""Embeddings and index parts: fit or take over the embedder, embed every shard, build its part of the index,
measure recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3build.embed import Embedder
from m3build.index import (
    IndexState,
    PartedIndex,
    choose_spec,
    measure_recall,
    open_part,
    sample_size,
    train,
    write_part,
)
from m3build.pipeline.freed_memory import give_back_freed_memory
from m3build.pipeline.ledger import Ledger, piece_key
from m3build.pipeline.places import Places
from m3build.pipeline.shard_stage import StagedShard
from m3build.pipeline.written import embedding_blocks, reference_texts, texts_of_rows
from m3build.progress import Stage
from m3build_formats.data_directory import DataDirectory
from m3build_formats.manifest import FileEntry
from m3build_formats.shard_tables import write_embeddings, write_index

# Document frequencies are counted on at most this many references, drawn by hash: beyond it they hardly
# change, and the cost stays bounded.
FIT_REFERENCES = 1 << 17
QUERY_REFERENCES = 256
EMBED_TEXTS = 512
QUERY_WORDS = 12
RECALL_AT = 10
# Recall is measured on at most this many parts, evenly spaced: exact search of a large bank costs as much as
# embedding it.
RECALL_VECTORS = 1 << 17


def sample_texts(places: Places, shards: Sequence[StagedShard], data: Path, count: int) -> Iterator[str]:
    """The texts of ``count`` references drawn uniformly by hash, grouped by shard, in an order that depends
    on the corpus alone.
    """
    chosen: dict[int, list[int]] = {}
    for _, shard, row in places.smallest(count):
        chosen.setdefault(shard, []).append(row)
    for shard in sorted(chosen):
        yield from texts_of_rows(data, shards[shard].chunks, sorted(chosen[shard]))


def pieces_of(texts: Iterable[str]) -> list[str]:
    """A run of words from the middle of each text: queries that resemble questions more than whole references
    do.
    """
    found = []
    for text in texts:
        words = text.split()
        if len(words) > 1:
            middle = max(0, (len(words) - QUERY_WORDS) // 2)
            found.append(" ".join(words[middle : middle + QUERY_WORDS]))
        else:
            middle = max(0, (len(text) - 3 * QUERY_WORDS) // 2)
            found.append(text[middle : middle + 3 * QUERY_WORDS])
    return found


def train_index(
    spec: str, vectors: int, embedder: Embedder, places: Places, shards: Sequence[StagedShard], data: Path
) -> IndexState:
    """The shared part of the index: coarse centroids where it has any, trained on references drawn by "
    "hash."""
    wanted = sample_size(choose_spec(spec, vectors))
    sample = np.empty((0, embedder.dim), np.float16)
    queries = None
    if wanted:
        sample = np.empty((min(wanted, len(places)), embedder.dim), np.float16)
        first: list[str] = []
        filled = 0
        for texts in _blocks(sample_texts(places, shards, data, wanted), EMBED_TEXTS):
            sample[filled : filled + len(texts)] = embedder.embed(texts)
            filled += len(texts)
            first += texts[: QUERY_REFERENCES - len(first)]
        queries = embedder.embed_queries(pieces_of(first))
    return train(spec, vectors, sample, queries)


def _blocks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while block := list(islice(texts, size)):
        yield block


@dataclass(frozen=True, slots=True)
class ShardVectors:
    """The embeddings and the index part of one shard."""

    embeddings: FileEntry
    index: FileEntry


class VectorWriter:
    """Embeds shards and builds their index parts; finds again what an earlier, stopped build or the bank's
    current version has.
    """

    def __init__(
        self,
        embedder: Embedder,
        state: IndexState,
        shaped_by: dict[str, Any],
        old: dict[str, ShardVectors],
        data: DataDirectory,
        ledger: Ledger,
    ) -> None:
        self._embedder = embedder
        self._state = state
        self._shaped_by = shaped_by
        self._old = old
        self._data = data
        self._ledger = ledger

    def write(self, shard: StagedShard, stage: Stage) -> ShardVectors:
        """Embeddings and index part of a shard, rows as in its chunks."""
        key = piece_key("vectors", {**self._shaped_by, "chunks": shard.chunks.sha256})
        found = self._old.get(shard.chunks.sha256) or self._finished(key)
        if found is not None and self._data.is_sound(found.embeddings) and self._data.is_sound(found.index):
            stage.advance(shard.rows)
            return found
        embeddings = write_embeddings(self._data, self._embed(shard, stage), self._embedder.dim)
        give_back_freed_memory()
        blocks = embedding_blocks(self._data.path, embeddings)
        made = ShardVectors(
            embeddings, write_index(self._data, lambda write: write_part(self._state, blocks, write))
        )
        give_back_freed_memory()
        self._ledger.put(
            key,
            {"embeddings": made.embeddings.to_json(), "index": made.index.to_json()},
        )
        return made

    def _embed(self, shard: StagedShard, stage: Stage) -> Iterator[NDArray[np.float16]]:
        for texts in reference_texts(self._data.path, shard.chunks):
            yield self._embedder.embed(texts)
            stage.advance(len(texts))

    def _finished(self, key: str) -> ShardVectors | None:
        done = self._ledger.get(key)
        if done is None:
            return None
        return ShardVectors(
            FileEntry.from_json(done["embeddings"]),
            FileEntry.from_json(done["index"]),
        )


def index_recall(
    state: IndexState,
    embedder: Embedder,
    written: Sequence[tuple[StagedShard, ShardVectors]],
    places: Places,
    data: Path,
) -> float:
    """Recall at 10 of the index against exact search, for pieces of references drawn by hash, on as much of
    the bank as RECALL_VECTORS allows.
    """
    rows = sum(shard.rows for shard, _ in written)
    step = max(1, -(-rows // RECALL_VECTORS))
    chosen = written[::step]
    shards = [shard for shard, _ in written]
    queries = embedder.embed_queries(
        pieces_of(islice(sample_texts(places, shards, data, QUERY_REFERENCES), QUERY_REFERENCES))
    )

    def opener(shard: StagedShard, vectors: ShardVectors) -> Callable[[], Any]:
        return lambda: open_part(state, memoryview((data / vectors.index.name).read_bytes()), shard.rows)

    index = PartedIndex(state, [opener(shard, vectors) for shard, vectors in chosen])
    return measure_recall(
        index, [embedding_blocks(data, v.embeddings) for _, v in chosen], queries, RECALL_AT
    )
