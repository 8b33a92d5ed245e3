"""Banks of random memories without a model and without training, of any codec, shape and size: every reader
must read the same numbers from one, and reading it costs what a real one costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from m3build.codec.codec import Codec, array_shapes
from m3build.codec.rows import Scope
from m3build.codec.spec import parse_spec
from m3build.embed.lexical import LexicalEmbedder
from m3build.index import build_part, train
from m3build_formats.arrays_file import write_arrays
from m3build_formats.commit import BankWriter
from m3build_formats.layout import UNUSED_SLOT
from m3build_formats.manifest import BankFileEntries, ShardEntry, VersionContents
from m3build_formats.shard_schema import ChunkRow, DocumentRow, Occurrence
from m3build_formats.shard_tables import (
    write_chunks,
    write_documents,
    write_embeddings,
    write_index,
    write_memories,
)

MemoryHeads = dict[int, Sequence[int]]
_ROWS_AT_ONCE = 512


def reference(number: int) -> str:
    """The text of reference ``number`` of a bank."""
    return f"Reference number {number} says that its lucky word is w{number * 7919 % 100_003}x."


def write_memory_bank(
    path: Path,
    rows: Sequence[int],
    spec: str,
    *,
    memory_heads: MemoryHeads,
    kv_heads: int,
    head_dim: int,
    slots: int,
    scope: Scope = "kind",
    memories: bool = True,
    seed: int = 0,
) -> Path:
    """Commit a bank with a shard for each number of ``rows``; ``memory_heads``: layer → key-value heads. The
    first text of each shard stands in all shards."""
    random = np.random.default_rng(seed)
    heads = tuple((layer, head) for layer, of_layer in memory_heads.items() for head in of_layer)
    codec = _codec(spec, scope, heads, head_dim, slots, random)
    texts, start = [], 0
    for count in rows:
        texts.append([reference(0), *(reference(number) for number in range(start + 1, start + count))])
        start += count
    embedder = LexicalEmbedder(dim=64)
    every = [text for shard in texts for text in shard]
    embedder.fit(every)
    state = train("Flat", len(every), embedder.embed(every[:512]), embedder.embed_queries(every[:512]))
    shared_row = next(_rows(codec, 1, random))
    with BankWriter(path) as writer:
        shards = []
        for number, of_shard in enumerate(texts):
            blocks = _shard_rows(codec, len(of_shard), shared_row, random)
            document = DocumentRow(
                f"d{number}", f"{number}.txt", 0, "", "{}", bytes(32), 10**9, len(of_shard)
            )
            vectors = embedder.embed(of_shard)
            shards.append(
                ShardEntry(
                    rows=len(of_shard),
                    documents=1,
                    chunks=write_chunks(writer, _chunks(of_shard, f"d{number}")),
                    documents_file=write_documents(writer, [document]),
                    memories=write_memories(writer, blocks, shared_row.shape[1]) if memories else None,
                    embeddings=write_embeddings(writer, [vectors], embedder.dim),
                    index=write_index(writer, build_part(state, [vectors])),
                )
            )
        arrays = codec.to_arrays()
        files = BankFileEntries(
            codec=write_arrays(writer, "codec", arrays) if arrays else None,
            embedder=write_arrays(writer, "embedder", {**embedder.to_arrays(), **state.to_arrays()}),
        )
        counts = ("documents", "tokens", "characters", "duplicates", "near_duplicates", "empty_documents")
        writer.commit(
            VersionContents(
                operation="compile",
                counts=dict.fromkeys((*counts, "rejects", "unsupported_files"), 0)
                | {"documents": len(rows), "chunks": sum(rows)},
                sources={},
                chunker={},
                model={"name": "none", "fingerprint": "0", "kv_heads": kv_heads, "head_dim": head_dim},
                memory={
                    "memory_layers": list(memory_heads),
                    "memory_heads": [list(of_layer) for of_layer in memory_heads.values()],
                    "sparse_tokens": slots,
                    "reference_tokens": 128,
                },
                codec={**codec.facts(), "key_error": None, "value_error": None},
                embedder=embedder.facts(),
                index={**state.facts(), "vectors": sum(rows)},
                libraries={},
                code_key="0" * 64,
                row_codes_bytes=codec.row_bytes,
                row_positions_bytes=len(heads) * slots,
                shards=tuple(shards),
                files=files,
            ),
            None,
        )
    return path


def _codec(
    text: str,
    scope: Scope,
    heads: tuple[tuple[int, int], ...],
    head_dim: int,
    slots: int,
    random: np.random.Generator,
) -> Codec:
    spec = parse_spec(text)
    spec.check_head_dim(head_dim)
    arrays = {
        name: random.standard_normal(shape, np.float32)
        for name, shape in array_shapes(spec, scope, heads, head_dim).items()
    }
    if "scale" in arrays:
        arrays["scale"] = np.abs(arrays["scale"]) + np.float32(0.25)
    return Codec(spec, scope, heads, head_dim, slots, arrays)


def _chunks(texts: Sequence[str], document: str) -> Iterator[ChunkRow]:
    for text in texts:
        identity = hashlib.sha256(text.encode()).digest()
        yield ChunkRow(identity, text, "", [len(text)], [Occurrence(document, 0, 0, len(text))])


def _shard_rows(
    codec: Codec, count: int, first: np.ndarray, random: np.random.Generator
) -> Iterator[np.ndarray]:
    yield first
    yield from _rows(codec, count - 1, random)


def _rows(codec: Codec, count: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks of rows with random codes; a fifth of the heads use fewer slots than they have."""
    heads, slots, width = len(codec.heads), codec.slots, codec.bytes_per_vector
    for start in range(0, count, _ROWS_AT_ONCE):
        n = min(_ROWS_AT_ONCE, count - start)
        codes = random.integers(0, 256, (n, 2 * heads * slots, width), np.uint8)
        if codec.spec.fine in ("none", "SQfp16"):
            # A cleared exponent bit keeps the 16-bit floats, the last part of a code, finite.
            codes[:, :, codec.spec.first_level_bytes() + 1 :: 2] &= 0xBF
        positions = np.sort(random.integers(0, 128 // slots, (n, heads, slots), np.uint8), axis=2)
        positions += np.arange(slots, dtype=np.uint8) * (128 // slots)
        used = np.where(random.random((n, heads)) < 0.2, random.integers(0, slots, (n, heads)), slots)
        # A row of which no head kept a token would have no memory yet.
        used[:, 0] = np.maximum(used[:, 0], 1)
        unused = np.arange(slots) >= used[:, :, None]
        positions[unused] = UNUSED_SLOT
        for side in codec.places:
            sides = codes[:, side]
            sides[unused] = 0
            codes[:, side] = sides
        yield np.concatenate([codes.reshape(n, -1), positions.reshape(n, -1)], axis=1)
