"""Embeddings and index parts: fit or take over the embedder, embed every shard, build its part of the index,
measure recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3build.embed import Embedder
from m3build.embed.lexical import LexicalEmbedder
from m3build.index import (
    IndexState,
    PartedIndex,
    VectorFile,
    choose_spec,
    measure_recall,
    open_part,
    sample_size,
    train,
    write_part,
)
from m3build.pipeline.freed_memory import give_back_freed_memory
from m3build.pipeline.ledger import Ledger, piece_key
from m3build.pipeline.places import Places, by_shard
from m3build.pipeline.shard_stage import StagedShard
from m3build.pipeline.written import embedding_blocks, reference_texts, texts_of_rows
from m3build.progress import Stage
from m3build.workers import Death, Tell, WorkerPool
from m3build_formats.data_directory import DataDirectory
from m3build_formats.errors import InputError, ResourceError
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
# A part is read whole, and the largest would be most of what a build holds at its end.
RECALL_PART_ROWS = 1 << 13
# Rows that are worth the start of another process.
ROWS_A_WORKER = 1 << 13


def sample_texts(places: Places, shards: Sequence[StagedShard], data: Path, count: int) -> Iterator[str]:
    """The texts of ``count`` references drawn uniformly by hash, grouped by shard, in an order that depends
    on the corpus alone.
    """
    for shard, rows, _ in by_shard(places.smallest(count)):
        yield from texts_of_rows(data, shards[shard].chunks, rows)


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
    """The shared part of the index: coarse centroids where it has any, trained on references drawn by hash,
    whose vectors wait on disk."""
    wanted = sample_size(choose_spec(spec, vectors))
    if not wanted or not shards:
        return train(spec, vectors, np.empty((0, embedder.dim), np.float16))
    with closing(VectorFile(embedder.dim, shards[0].scratch)) as sample:
        for texts in _blocks(sample_texts(places, shards, data, wanted), EMBED_TEXTS):
            sample.append(embedder.embed(texts))
        return train(spec, vectors, sample, drawn_queries(embedder, places, shards, data))


def drawn_queries(
    embedder: Embedder, places: Places, shards: Sequence[StagedShard], data: Path
) -> NDArray[np.float32]:
    """Vectors of pieces of references that are drawn by hash from all of the corpus: the first of a larger
    draw would be those of its first shards."""
    return embedder.embed_queries(pieces_of(sample_texts(places, shards, data, QUERY_REFERENCES)))


def _blocks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while block := list(islice(texts, size)):
        yield block


@dataclass(frozen=True, slots=True)
class ShardVectors:
    """The embeddings and the index part of one shard."""

    embeddings: FileEntry
    index: FileEntry


@dataclass(frozen=True, slots=True)
class _Made:
    """What a worker made, and which files of the data directory it had to write."""

    vectors: ShardVectors
    written: frozenset[str]


@dataclass(frozen=True, slots=True)
class _EmbedTask:
    chunks: FileEntry
    deaths: tuple[str, ...] = ()

    def after(self, death: Death) -> _EmbedTask:
        """The same once more. Raises ResourceError after two deaths."""
        if self.deaths:
            raise ResourceError(
                f"a worker that embedded {self.chunks.name} {death.how}, and one before it {self.deaths[0]}: "
                "look for what ended them (memory, most often), or try --workers 1"
            )
        return _EmbedTask(self.chunks, (death.how,))


@dataclass(frozen=True, slots=True)
class _EmbedJob:
    """Embedding shards in a worker."""

    embedder: Embedder
    state: IndexState
    data: Path

    @contextmanager
    def begin(self) -> Iterator[Callable[[_EmbedTask, Tell], _Made]]:
        with DataDirectory(self.data) as data:

            def run(task: _EmbedTask, tell: Tell) -> _Made:
                before = set(data.written)
                vectors = _make(self.embedder, self.state, task.chunks, data, lambda rows: tell())
                return _Made(vectors, frozenset(data.written - before))

            yield run


class VectorWriter:
    """Embeds shards and builds their index parts; finds again what an earlier, stopped build or the bank's
    current version has. ``workers`` is how many processes embed at most, ``scratch`` a directory for what
    they print.
    """

    def __init__(
        self,
        embedder: Embedder,
        state: IndexState,
        shaped_by: dict[str, Any],
        old: dict[str, ShardVectors],
        data: DataDirectory,
        ledger: Ledger,
        scratch: Path,
        workers: int = 1,
    ) -> None:
        self._embedder = embedder
        self._state = state
        self._shaped_by = shaped_by
        self._old = old
        self._data = data
        self._ledger = ledger
        self._scratch = scratch
        # A neural embedder uses all cores as it is.
        self._workers = workers if isinstance(embedder, LexicalEmbedder) else 1

    def write_all(self, shards: Sequence[StagedShard], stage: Stage) -> list[ShardVectors]:
        """Embeddings and index part of each shard, rows as in its chunks. Raises ResourceError where workers
        fail."""
        found = [self._find(shard, stage) for shard in shards]
        missing = [shard for shard, vectors in zip(shards, found, strict=True) if vectors is None]
        made = iter(list(self._make_all(missing, stage)))
        return [vectors if vectors is not None else next(made) for vectors in found]

    def _make_all(self, shards: Sequence[StagedShard], stage: Stage) -> Iterator[ShardVectors]:
        rows = sum(shard.rows for shard in shards)
        workers = min(self._workers, len(shards), rows // ROWS_A_WORKER)
        if workers <= 1:
            for shard in shards:
                vectors = _make(self._embedder, self._state, shard.chunks, self._data, stage.advance)
                give_back_freed_memory()
                yield self._keep(shard, vectors)
            return
        job = _EmbedJob(self._embedder, self._state, self._data.path)
        with WorkerPool[_EmbedTask, _Made](job, workers, self._scratch, _EmbedTask.after) as pool:
            tasks = (_EmbedTask(shard.chunks) for shard in shards)
            for shard, made in zip(shards, pool.results(tasks), strict=True):
                self._data.written |= made.written
                stage.advance(shard.rows)
                yield self._keep(shard, made.vectors)
        # All workers are gone, and with them whoever may have wanted what one left half written.
        self._data.remove_temporaries()

    def _find(self, shard: StagedShard, stage: Stage) -> ShardVectors | None:
        found = self._old.get(shard.chunks.sha256) or self._finished(self._key(shard))
        if found is None or not (self._data.is_sound(found.embeddings) and self._data.is_sound(found.index)):
            return None
        stage.advance(shard.rows)
        return found

    def _keep(self, shard: StagedShard, made: ShardVectors) -> ShardVectors:
        self._ledger.put(
            self._key(shard), {"embeddings": made.embeddings.to_json(), "index": made.index.to_json()}
        )
        return made

    def _key(self, shard: StagedShard) -> str:
        return piece_key("vectors", {**self._shaped_by, "chunks": shard.chunks.sha256})

    def _finished(self, key: str) -> ShardVectors | None:
        done = self._ledger.get(key)
        if done is None:
            return None
        return ShardVectors(
            FileEntry.from_json(done["embeddings"]),
            FileEntry.from_json(done["index"]),
        )


def _make(
    embedder: Embedder,
    state: IndexState,
    chunks: FileEntry,
    data: DataDirectory,
    advance: Callable[[int], None],
) -> ShardVectors:
    def vectors() -> Iterator[NDArray[np.float16]]:
        for texts in reference_texts(data.path, chunks):
            embedded = embedder.embed(texts)
            if not np.isfinite(embedded).all():
                raise InputError(f"embedder {embedder.name}: some of its vectors are not finite")
            yield embedded
            advance(len(texts))

    embeddings = write_embeddings(data, vectors(), embedder.dim)
    give_back_freed_memory()

    def blocks() -> Iterator[NDArray[np.float16]]:
        for block in embedding_blocks(data.path, embeddings):
            yield block
            # No row is done, but whoever watches over a worker hears that it gets on.
            advance(0)

    rows = embeddings.rows or 0
    index = write_index(data, lambda write: write_part(state, blocks, rows, write))
    return ShardVectors(embeddings, index)


def index_recall(
    state: IndexState,
    queries: NDArray[np.float32],
    written: Sequence[tuple[StagedShard, ShardVectors]],
    data: Path,
) -> float:
    """Recall at 10 of the index against exact search for ``queries``, float32 (n, dim), on as much of the
    bank as RECALL_VECTORS allows: of parts of at most RECALL_PART_ROWS, if there are any. Where a shard ends
    is a matter of hashes, so these are like the others; but a graph (HNSW) finds less in a larger part, and
    is measured on parts of all sizes.
    """
    small = [made for made in written if made[0].rows <= RECALL_PART_ROWS]
    if small and state.spec.storage != "HNSW":
        written = small
    rows = sum(shard.rows for shard, _ in written)
    step = max(1, -(-rows // RECALL_VECTORS))
    chosen = written[::step]

    def opener(shard: StagedShard, vectors: ShardVectors) -> Callable[[], Any]:
        return lambda: open_part(state, memoryview((data / vectors.index.name).read_bytes()), shard.rows)

    index = PartedIndex(state, [opener(shard, vectors) for shard, vectors in chosen])
    return measure_recall(
        index, [embedding_blocks(data, v.embeddings) for _, v in chosen], queries, RECALL_AT
    )
