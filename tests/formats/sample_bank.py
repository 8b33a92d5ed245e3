"""A small valid bank made without any model, and parts of it for tests that want to spoil one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from m3build_formats.arrays_file import write_arrays
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import FileTarget
from m3build_formats.evaluation_file import write_evaluation
from m3build_formats.layout import UNUSED_SLOT
from m3build_formats.manifest import BankFileEntries, Manifest, ShardEntry, VersionContents
from m3build_formats.rejects_file import RejectRow, write_rejects
from m3build_formats.shard_tables import (
    ChunkRow,
    DocumentRow,
    Occurrence,
    write_chunks,
    write_documents,
    write_embeddings,
    write_index,
    write_memories,
)

HEADS = [[0, 1], [1]]
SLOTS = 3
VECTOR = 2
DIM = 8
CODES = 2 * 3 * SLOTS * VECTOR
POSITIONS = 3 * SLOTS
ROW_BYTES = CODES + POSITIONS
INDEX = b"IxFI" + bytes(60)


def chunk_rows(rows: int, shard: int = 0) -> list[ChunkRow]:
    """Chunks of two documents; every third text also occurs in the second document."""
    found = []
    for row in range(rows):
        text = f"chunk {row} of shard {shard}, naïve 文字"
        title = "Title" if row % 2 else ""
        reference = f"{title}\n{text}" if title else text
        occurrences = [Occurrence(f"first-{shard}", 0, row * 40, row * 40 + len(text))]
        if row % 3 == 0:
            occurrences.append(Occurrence(f"second-{shard}", 1, row * 40, row * 40 + len(text)))
        found.append(
            ChunkRow(
                id=hashlib.sha256(reference.encode()).digest(),
                text=text,
                title=title,
                token_ends=tuple(range(3, len(reference), 5)),
                occurrences=tuple(occurrences),
            )
        )
    return found


def document_rows(chunks: Sequence[ChunkRow], shard: int = 0) -> list[DocumentRow]:
    """The documents that `chunk_rows` refers to."""
    counts = [sum(place.row == row for chunk in chunks for place in chunk.occurrences) for row in (0, 1)]
    first = DocumentRow(
        f"first-{shard}", "dir/a.txt", 0, "Ä title", '{"key":[1,2.5,null]}', bytes(32), 10**6, counts[0]
    )
    second = DocumentRow(f"second-{shard}", "dir/b.jsonl", 77, "", "{}", b"\xff" * 32, 10**6, counts[1])
    return [first, second]


def memory_array(chunks: Sequence[ChunkRow], seed: int = 0) -> np.ndarray:
    """Memory rows (n, ROW_BYTES) uint8 with valid positions; the last slot of each first head is unused."""
    random = np.random.default_rng(seed)
    rows = len(chunks)
    codes = random.integers(0, 256, (rows, CODES), dtype=np.uint8)
    positions = np.empty((rows, 3, SLOTS), np.uint8)
    for row, chunk in enumerate(chunks):
        for head in range(3):
            positions[row, head] = np.sort(random.permutation(chunk.tokens)[:SLOTS])
    positions[:, 0, -1] = UNUSED_SLOT
    first_layer = codes[:, : 2 * 2 * SLOTS * VECTOR].reshape(rows, 2, 2, SLOTS, VECTOR)
    first_layer[:, :, 0, -1] = 0
    return np.concatenate([codes, positions.reshape(rows, POSITIONS)], axis=1)


def embedding_array(rows: int, seed: int = 0) -> np.ndarray:
    """Retrieval vectors (n, DIM) float16."""
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float16)


def write_shard(
    target: FileTarget,
    chunks: Sequence[ChunkRow],
    shard: int = 0,
    *,
    documents: Sequence[DocumentRow] | None = None,
    memories: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
) -> ShardEntry:
    """Writes the files of a shard; what is not given is made to fit ``chunks``."""
    documents = document_rows(chunks, shard) if documents is None else documents
    memories = memory_array(chunks, shard) if memories is None else memories
    embeddings = embedding_array(len(chunks), shard) if embeddings is None else embeddings
    return ShardEntry(
        rows=len(chunks),
        documents=len(documents),
        chunks=write_chunks(target, chunks),
        documents_file=write_documents(target, documents),
        memories=write_memories(target, [memories], ROW_BYTES),
        embeddings=write_embeddings(target, [embeddings], DIM),
        index=write_index(target, INDEX + bytes([shard])),
    )


def bank_files(target: FileTarget) -> BankFileEntries:
    """Codec, embedder, rejects and evaluation."""
    return BankFileEntries(
        codec=write_arrays(target, "codec", {"means": np.arange(6, dtype=np.float32).reshape(2, 3)}),
        embedder=write_arrays(target, "embedder", {"frequencies": np.arange(50, dtype=np.uint32)}),
        rejects=write_rejects(
            target,
            [RejectRow("a.jsonl", "line 3", "broken JSON"), RejectRow("b.pdf", "", "pdf", "unsupported")],
        ),
        eval=write_evaluation(target, {"loss": 1.25}),
    )


def contents(
    shards: Sequence[ShardEntry], files: BankFileEntries, operation: str = "compile"
) -> VersionContents:
    """Version contents that fit the sample's shapes."""
    rows = sum(shard.rows for shard in shards)
    return VersionContents(
        operation=operation,
        counts={
            "documents": 2,
            "chunks": rows,
            "tokens": 5 * rows,
            "characters": 2 * 10**6,
            "duplicates": 0,
            "near_duplicates": 0,
            "empty_documents": 0,
            "rejects": 1,
            "unsupported_files": 1,
        },
        sources={"arguments": ["corpus"]},
        chunker={"reference_tokens": 128},
        model={"name": "sample", "fingerprint": "f00d", "kv_heads": 2, "head_dim": 4, "dtype": "float32"},
        memory={
            "memory_layers": [0, 2],
            "memory_heads": HEADS,
            "sparse_tokens": SLOTS,
            "reference_tokens": 128,
        },
        codec={
            "spec": "PQ2x8",
            "bytes_per_vector": VECTOR,
            "compression": 4.0,
            "key_error": 0.25,
            "value_error": None,
        },
        embedder={"name": "lexical", "dim": DIM},
        index={"type": "Flat", "metric": "inner_product", "vectors": rows},
        libraries={"numpy": "2"},
        code_key="0123456789abcdef",
        row_codes_bytes=CODES,
        row_positions_bytes=POSITIONS,
        shards=tuple(shards),
        files=files,
    )


def build_bank(path: Path, rows: Sequence[int] = (40, 7)) -> Manifest:
    """A bank of one version with a shard for each number of rows."""
    with BankWriter(path) as writer:
        shards = [write_shard(writer, chunk_rows(count, shard), shard) for shard, count in enumerate(rows)]
        return writer.commit(contents(shards, bank_files(writer)), None)


def add_version(path: Path, operation: str = "touch") -> Manifest:
    """Commits the current contents once more under another operation."""
    with BankWriter(path) as writer:
        base = writer.current()
        assert base is not None
        return writer.commit(replace(base.contents, operation=operation), base)


def temporary_files(path: Path) -> list[Path]:
    """Every file below ``path`` with a temporary name."""
    return [file for file in path.rglob("*") if file.name.startswith(".tmp")]
