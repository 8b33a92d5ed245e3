"""Small banks of several shards, written with the format's own writers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from m3build.embed.lexical import LexicalEmbedder
from m3build.index import build_part, train
from m3build_formats.arrays_file import write_arrays
from m3build_formats.commit import BankWriter
from m3build_formats.manifest import BankFileEntries, ShardEntry, VersionContents
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

BankMaker = Callable[..., Path]
HEADS = 3
SLOTS = 2


def chunk_id(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def write_bank(
    path: Path,
    shards: Sequence[Sequence[str]],
    spec: str = "auto",
    memories: bool = True,
    candidates: int = 200,
) -> Path:
    """A bank whose document ``d<shard>`` holds the shard's texts; equal texts of a shard become one row."""
    embedder = LexicalEmbedder(dim=128, candidates=candidates)
    every = [text for shard in shards for text in shard]
    embedder.fit(every)
    state = train(spec, len(every), embedder.embed(every), embedder.embed_queries(every))
    with BankWriter(path) as writer:
        entries = []
        for number, texts in enumerate(shards):
            places: dict[str, list[Occurrence]] = {}
            start = 0
            for text in texts:
                places.setdefault(text, []).append(Occurrence(f"d{number}", 0, start, start + len(text)))
                start += len(text) + 1
            rows = list(places)
            vectors = embedder.embed(rows)
            memory = np.zeros((len(rows), HEADS * SLOTS * 4 + HEADS * SLOTS), np.uint8)
            memory[:, -HEADS * SLOTS :] = [0, 255, 0, 1, 255, 255]
            entries.append(
                ShardEntry(
                    len(rows),
                    1,
                    write_chunks(writer, (ChunkRow(chunk_id(t), t, "", [len(t)], places[t]) for t in rows)),
                    write_documents(
                        writer,
                        [
                            DocumentRow(
                                f"d{number}", f"file{number}.txt", 7, "", "{}", bytes(32), start, len(texts)
                            )
                        ],
                    ),
                    write_memories(writer, [memory], memory.shape[1]) if memories else None,
                    write_embeddings(writer, [vectors], embedder.dim),
                    write_index(writer, build_part(state, [vectors])),
                )
            )
        rows_in_all = sum(entry.rows for entry in entries)
        writer.commit(
            VersionContents(
                operation="compile",
                counts=dict.fromkeys(
                    ["duplicates", "near_duplicates", "empty_documents", "rejects", "unsupported_files"], 0
                )
                | {"documents": len(shards), "chunks": rows_in_all, "tokens": len(every), "characters": 0},
                sources={},
                chunker={},
                model={"name": "m", "fingerprint": "f", "kv_heads": 2, "head_dim": 4},
                memory={
                    "memory_layers": [0, 2],
                    "memory_heads": [[0, 1], [1]],
                    "sparse_tokens": SLOTS,
                    "reference_tokens": 8,
                },
                codec={
                    "spec": "none",
                    "bytes_per_vector": 2,
                    "compression": 1.0,
                    "key_error": None,
                    "value_error": None,
                },
                embedder=embedder.facts(),
                index={**state.facts(), "vectors": rows_in_all},
                libraries={},
                code_key="ab" * 8,
                row_codes_bytes=2 * HEADS * SLOTS * 2,
                row_positions_bytes=HEADS * SLOTS,
                shards=tuple(entries),
                files=BankFileEntries(
                    embedder=write_arrays(writer, "embedder", {**embedder.to_arrays(), **state.to_arrays()})
                ),
            ),
            writer.current(),
        )
    return path


@pytest.fixture(scope="session")
def make_bank(tmp_path_factory: pytest.TempPathFactory) -> BankMaker:
    """``make_bank(shards, spec="auto", memories=True, candidates=200)`` writes a bank and gives its path."""

    def make(
        shards: Sequence[Sequence[str]], spec: str = "auto", memories: bool = True, candidates: int = 200
    ) -> Path:
        return write_bank(tmp_path_factory.mktemp("bank") / "bank", shards, spec, memories, candidates)

    return make
