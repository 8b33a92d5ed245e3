"""What a version says of itself: counts, facts of the model's memories, and whether it is the one before."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from m3build.chunking import Chunker
from m3build.model import LoadedModel
from m3build.pipeline.corpus_stage import ChunkedCorpus
from m3build.pipeline.memory_stage import MemoryWriter
from m3build.pipeline.shard_stage import ShardedCorpus
from m3build_formats.manifest import Manifest, VersionContents


def chunk_shape(model: LoadedModel, chunker: Chunker) -> dict[str, Any]:
    """What shapes chunks: the hash of the tokenizer, and how the chunker was set."""
    tokenizer: str = model.tokenizer.backend_tokenizer.to_str()
    return {"tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(), "chunker": chunker.describe()}


def counts_of(corpus: ChunkedCorpus, sharded: ShardedCorpus) -> dict[str, int]:
    """What was read, cut, folded and refused, by the names of the manifest."""
    read, cut = corpus.counts, sharded.counts
    return {
        "documents": cut.get("documents", 0),
        "chunks": cut.get("chunks", 0),
        "tokens": cut.get("tokens", 0),
        "characters": cut.get("characters", 0),
        "duplicates": cut["duplicates"],
        "near_duplicates": cut.get("near_duplicates", 0),
        "empty_documents": read.get("empty_documents", 0),
        "rejects": read.get("rejects", 0) + cut.get("rejects", 0),
        "unsupported_files": read.get("unsupported_files", 0),
    }


def cold_counts(memories: MemoryWriter) -> dict[str, int]:
    """How many rows have no memory yet, where there are any."""
    return {"cold": memories.counts["cold"]} if memories.counts["cold"] else {}


def memory_facts(model: LoadedModel) -> dict[str, Any]:
    """The shape of the memories, with the memory heads of each layer in a list of its own."""
    record = model.shape.record()
    record["memory_heads"] = [list(model.shape.heads_of(layer)) for layer in model.shape.memory_layers]
    return record


def is_same(old: Manifest, new: VersionContents) -> bool:
    """Whether the sources and options gave the version that is there already; library versions alone make no
    new one, and what was measured of it since does not count.
    """

    def shaped(version: VersionContents) -> tuple[object, ...]:
        return (
            version.counts,
            version.sources,
            version.chunker,
            version.model,
            # A version from before this key read as one that has it and says no.
            {"continuations": False, **version.memory},
            version.codec,
            version.embedder,
            version.index,
            version.code_key,
            version.shards,
            replace(version.files, eval=None),
        )

    return shaped(old.contents) == shaped(new)
