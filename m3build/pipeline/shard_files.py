"""The files of every shard: memories, then embeddings and index parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from itertools import chain

from m3build.pipeline.ledger import Ledger
from m3build.pipeline.memory_stage import Encode, MemoryWriter, OldMemories, finished_memories, memories_of
from m3build.pipeline.places import Places
from m3build.pipeline.retrieval_stage import PreparedRetrieval
from m3build.pipeline.shard_stage import ShardedCorpus
from m3build.pipeline.vector_stage import ShardVectors, VectorWriter
from m3build.pipeline.watch import Watch
from m3build_formats.commit import BankWriter
from m3build_formats.manifest import FileEntry, Manifest, ShardEntry


def memories_to_copy(
    old: Manifest | None, key: str, encodes: bool, writer: BankWriter, ledger: Ledger, stack: ExitStack
) -> OldMemories | None:
    """What may be copied: of the current version if its code key is this build's, and of stopped builds; None
    where there is nothing."""
    places = stack.enter_context(closing(Places(writer.build_directory / "old-places.sqlite")))
    stored = memories_of(old) if old is not None and old.code_key == key else ()
    # A build of text only is what it is without what a stopped one had encoded.
    finished = finished_memories(ledger, key) if encodes else ()
    memories = OldMemories(chain(stored, finished), places, writer.data)
    return memories if len(memories) else None


def encode_shards(
    sharded: ShardedCorpus,
    memories: MemoryWriter,
    encoder: Callable[[], AbstractContextManager[Encode]] | None,
    watch: Watch,
) -> list[FileEntry | None]:
    """Write the memories that are not there yet; those of all shards, in order. ``encoder`` gives what
    encodes references, None where none are, and is left again."""
    rows = sum(shard.rows for shard in sharded.shards)
    with ExitStack() as encoding:
        encode = encoding.enter_context(encoder()) if encoder is not None else None
        with watch.stage("encode" if encode is not None else "keep", rows, "references") as stage:
            return [memories.write(shard, stage, encode) for shard in sharded.shards]


def embed_shards(
    sharded: ShardedCorpus,
    retrieval: PreparedRetrieval,
    old: Manifest | None,
    writer: BankWriter,
    ledger: Ledger,
    workers: int,
    watch: Watch,
) -> list[ShardVectors]:
    """Write the embeddings and index parts that are not there yet; those of all shards, in order."""
    rows = sum(shard.rows for shard in sharded.shards)
    same_embedder = (
        old is not None
        and old.files.embedder is not None
        and old.files.embedder.sha256 == retrieval.file.sha256
    )
    vectors_writer = VectorWriter(
        retrieval.embedder,
        retrieval.state,
        {"embedder": retrieval.file.sha256},
        {s.chunks.sha256: ShardVectors(s.embeddings, s.index) for s in old.shards}
        if old and same_embedder
        else {},
        writer.data,
        ledger,
        writer.build_directory,
        workers,
    )
    with watch.stage("embed", rows, "chunks") as stage:
        return vectors_writer.write_all(sharded.shards, stage)


def entries_of(
    sharded: ShardedCorpus, memories: Sequence[FileEntry | None], vectors: Sequence[ShardVectors]
) -> list[ShardEntry]:
    """What a manifest says of each shard."""
    return [
        ShardEntry(
            rows=shard.rows,
            documents=shard.document_rows,
            chunks=shard.chunks,
            documents_file=shard.documents,
            memories=memory,
            embeddings=vector.embeddings,
            index=vector.index,
        )
        for shard, memory, vector in zip(sharded.shards, memories, vectors, strict=True)
    ]
