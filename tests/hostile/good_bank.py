"""A small sound bank with a real codec, embedder and index of any kind, made without a model or training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from sample_bank import (
    HEADS,
    POSITIONS,
    ROW_BYTES,
    SLOTS,
    VECTOR,
    bank_files,
    chunk_rows,
    contents,
    document_rows,
    memory_array,
)

from m3build.codec.codec import Codec, array_shapes
from m3build.codec.spec import parse_spec as parse_codec
from m3build.embed.lexical import LexicalEmbedder
from m3build.index import IndexState, build_part
from m3build.index.spec import parse_spec as parse_index
from m3build_formats.arrays_file import write_arrays
from m3build_formats.commit import BankWriter
from m3build_formats.layout import reference_text
from m3build_formats.manifest import ShardEntry
from m3build_formats.shard_tables import (
    write_chunks,
    write_documents,
    write_embeddings,
    write_index,
    write_memories,
)

DIM = 64
HEAD_DIM = 4
ROWS = (40, 7)
CODEC_HEADS = ((0, 0), (0, 1), (2, 1))
SPEC = "SQfp16"
"""The index of a bank for whose case the index does not matter: what ``--index auto`` means for few rows."""

__all__ = [
    "DIM",
    "HEADS",
    "HEAD_DIM",
    "POSITIONS",
    "ROWS",
    "ROW_BYTES",
    "SLOTS",
    "SPEC",
    "VECTOR",
    "build",
    "make_codec",
    "make_embedder",
    "make_state",
]


def make_codec(spec: str = "PQ2x8") -> Codec:
    """A codec with random arrays for the sample's heads; ``PQ2x8`` has the sample's bytes a vector."""
    random, parsed = np.random.default_rng(3), parse_codec(spec)
    arrays = {
        name: random.uniform(0.5, 1.5, shape).astype(np.float32)
        for name, shape in array_shapes(parsed, "kind", CODEC_HEADS, HEAD_DIM).items()
    }
    return Codec(parsed, "kind", CODEC_HEADS, HEAD_DIM, SLOTS, arrays)


def make_embedder() -> LexicalEmbedder:
    """A lexical embedder fitted on the sample's texts."""
    embedder = LexicalEmbedder(dim=DIM, candidates=20)
    embedder.fit(text for shard in range(len(ROWS)) for text in texts_of(shard))
    return embedder


def make_state(spec: str) -> IndexState:
    """What the parts of an index share, random where it would be trained."""
    random, parsed = np.random.default_rng(4), parse_index(spec)
    size = {"SQ8": 2 * DIM, "PQ": DIM << 8}.get(parsed.storage, 0)
    return IndexState(
        parsed,
        DIM,
        parsed.lists // 2 or parsed.lists,
        random.standard_normal((parsed.lists, DIM)).astype(np.float32),
        random.uniform(0.1, 2, size).astype(np.float32),
    )


def texts_of(shard: int) -> list[str]:
    """The reference texts of a shard in row order."""
    return [reference_text(chunk.title, chunk.text) for chunk in chunk_rows(ROWS[shard], shard)]


def build(path: Path, spec: str = SPEC) -> Path:
    """Writes the bank: one version, two shards of ``ROWS`` rows, every kind of file."""
    embedder, state, codec = make_embedder(), make_state(spec), make_codec()
    with BankWriter(path) as writer:
        shards = []
        for number, rows in enumerate(ROWS):
            chunks = chunk_rows(rows, number)
            documents = document_rows(chunks, number)
            vectors = embedder.embed(texts_of(number))
            shards.append(
                ShardEntry(
                    rows,
                    len(documents),
                    write_chunks(writer, chunks),
                    write_documents(writer, documents),
                    write_memories(writer, [memory_array(chunks, number)], ROW_BYTES),
                    write_embeddings(writer, [vectors], DIM),
                    write_index(writer, build_part(state, [vectors])),
                )
            )
        files = replace(
            bank_files(writer),
            codec=write_arrays(writer, "codec", codec.to_arrays()),
            embedder=write_arrays(writer, "embedder", {**embedder.to_arrays(), **state.to_arrays()}),
        )
        writer.commit(
            replace(
                contents(shards, files),
                codec={**codec.facts(), "key_error": 0.25, "value_error": 0.5},
                embedder=embedder.facts(),
                index={**state.facts(), "vectors": sum(ROWS)},
            ),
            None,
        )
    return path
