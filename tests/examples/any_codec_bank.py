"""Makes a small bank of any codec without a model and without training: random codebooks, random codes, and
texts that are awkward in a language whose strings count UTF-16 units. Its numbers mean nothing, but every
reader must read the same ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3build.codec.codec import Codec, array_shapes
from m3build.codec.rows import Scope
from m3build.codec.spec import parse_spec
from m3build_formats.arrays_file import write_arrays
from m3build_formats.commit import BankWriter
from m3build_formats.layout import UNUSED_SLOT, reference_text
from m3build_formats.manifest import BankFileEntries, ShardEntry, VersionContents
from m3build_formats.shard_schema import ChunkRow, DocumentRow, Occurrence
from m3build_formats.shard_tables import (
    write_chunks,
    write_documents,
    write_embeddings,
    write_index,
    write_memories,
)

LAYERS, MEMORY_HEADS = [1, 3], [[0, 2], [1]]
HEADS = ((1, 0), (1, 2), (3, 1))
HEAD_DIM, SLOTS, DIM = 12, 4, 8
TEXTS = [
    ("", "plain words of a reference"),
    ("Title", "naïve 文字 😀 beyond the first plane"),
    ("", "\ufeffbegins with a byte order mark"),
    ("", "x"),
    ("Ä ◌́", "tab\tand line\r\nfeed"),
]
SHARDS = (TEXTS, [("", "only here 🂡🂡"), *TEXTS[:2]])  # two texts stand in both shards


def build(path: Path, spec: str, scope: Scope = "kind", seed: int = 0) -> None:
    """Commits version 1 of a bank of two shards at ``path``."""
    random = np.random.default_rng(seed)
    codec = _codec(spec, scope, random)
    with BankWriter(path) as writer:
        shards = []
        for number, texts in enumerate(SHARDS):
            chunks = _chunks(texts, number)
            document = DocumentRow(
                f"doc-{number}",
                f"dir/文-{number}.txt",
                2**40,
                "",
                "{}",
                bytes(32),
                10**6,
                sum(len(chunk.occurrences) for chunk in chunks),
            )
            embeddings = random.standard_normal((len(chunks), DIM)).astype(np.float16)
            embeddings[0, :3] = [-0.0, 6e-8, -65504]  # minus zero, the least subnormal, the largest
            shards.append(
                ShardEntry(
                    rows=len(chunks),
                    documents=1,
                    chunks=write_chunks(writer, chunks),
                    documents_file=write_documents(writer, [document]),
                    memories=write_memories(
                        writer, [memory_rows(codec, chunks, random)], codec.row_bytes + len(HEADS) * SLOTS
                    ),
                    embeddings=write_embeddings(writer, [embeddings], DIM),
                    index=write_index(writer, b"IxFI" + bytes([number]) * 60),
                )
            )
        arrays = codec.to_arrays()
        files = BankFileEntries(codec=write_arrays(writer, "codec", arrays) if arrays else None)
        writer.commit(_contents(codec, shards, files), None)


def _codec(spec: str, scope: Scope, random: np.random.Generator) -> Codec:
    parsed = parse_spec(spec)
    parsed.check_head_dim(HEAD_DIM)
    arrays = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in array_shapes(parsed, scope, HEADS, HEAD_DIM).items()
    }
    for name in set(arrays) & {"scale", "scalar_range"}:
        arrays[name] = np.abs(arrays[name]) + np.float32(0.25)
    if "transform" in arrays:
        # Q of a tall matrix has orthonormal columns; the format's transform has orthonormal rows.
        arrays["transform"] = np.linalg.qr(arrays["transform"].swapaxes(1, 2))[0].swapaxes(1, 2).copy()
    return Codec(parsed, scope, HEADS, HEAD_DIM, SLOTS, arrays)


def _chunks(texts: list[tuple[str, str]], shard: int) -> list[ChunkRow]:
    found = []
    for number, (title, text) in enumerate(texts):
        reference = reference_text(title, text)
        # The second character takes two tokens, as one outside a tokenizer's vocabulary does.
        ends = sorted([*range(1, len(reference) + 1), min(2, len(reference))])
        places = [
            Occurrence(f"doc-{shard}", 0, 100 * number + i, 100 * number + i + len(text)) for i in (0, 50)
        ]
        identity = hashlib.sha256(reference.encode()).digest()
        found.append(ChunkRow(identity, text, title, ends, places[: 1 + number % 2]))
    return found


def memory_rows(codec: Codec, chunks: list[ChunkRow], random: np.random.Generator) -> NDArray[np.uint8]:
    """Rows with random codes and 0 to SLOTS kept positions a head."""
    width = codec.bytes_per_vector
    codes = random.integers(0, 256, (len(chunks), 2 * len(HEADS) * SLOTS, width), np.uint8)
    if codec.spec.fine in ("none", "SQfp16"):
        # A cleared exponent bit keeps the 16-bit floats, the last part of a code, finite.
        codes[:, :, codec.spec.first_level_bytes() + 1 :: 2] &= 0xBF
    positions = np.full((len(chunks), len(HEADS), SLOTS), UNUSED_SLOT, np.uint8)
    for row, chunk in enumerate(chunks):
        for head in range(len(HEADS)):
            kept = random.permutation(chunk.tokens)[: random.integers(0, SLOTS + 1)]
            positions[row, head, : len(kept)] = np.sort(kept)
            codes[row, codec.places[:, head, len(kept) :]] = 0
    return np.concatenate([codes.reshape(len(chunks), -1), positions.reshape(len(chunks), -1)], axis=1)


def _contents(codec: Codec, shards: list[ShardEntry], files: BankFileEntries) -> VersionContents:
    counts = dict.fromkeys(
        ("documents", "tokens", "characters", "duplicates", "near_duplicates", "empty_documents", "rejects"),
        0,
    )
    return VersionContents(
        operation="compile",
        counts={**counts, "unsupported_files": 0, "chunks": sum(shard.rows for shard in shards)},
        sources={},
        chunker={},
        model={"name": "none", "fingerprint": "0", "kv_heads": 3, "head_dim": HEAD_DIM},
        memory={
            "memory_layers": LAYERS,
            "memory_heads": MEMORY_HEADS,
            "sparse_tokens": SLOTS,
            "reference_tokens": 128,
        },
        codec={**codec.facts(), "key_error": None, "value_error": None},
        embedder={"name": "none", "dim": DIM},
        index={"type": "Flat", "metric": "inner_product", "vectors": 0},
        libraries={},
        code_key="0" * 64,
        row_codes_bytes=codec.row_bytes,
        row_positions_bytes=len(HEADS) * SLOTS,
        shards=tuple(shards),
        files=files,
    )
