"""Documents that are read back from a bank are those that went in; a bank that lies is found out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3build.pipeline.sharder import cut_shards, reference_id
from m3build.pipeline.stored_corpus import stored_documents
from m3build.records import Chunk, reference_text
from m3build_formats.commit import BankWriter
from m3build_formats.entries import ShardEntry
from m3build_formats.errors import CorruptError
from m3build_formats.manifest import BankFileEntries, VersionContents
from m3build_formats.mapped_file import MappedFile
from m3build_formats.open_bank import BankFiles
from m3build_formats.shard_tables import (
    ChunkRow,
    DocumentRow,
    Occurrence,
    write_chunks,
    write_documents,
    write_embeddings,
    write_index,
)


def document(name: str, chunks: int, **values: Any) -> DocumentRow:
    return DocumentRow(name, f"{name}.txt", 3, "Title", '{"a":1}', b"\1" * 32, 10**6, chunks, **values)


def chunk(text: str, start: int, title: str = "") -> Chunk:
    ends = tuple(range(1, len(reference_text(title, text)) + 1, 3))
    return Chunk(text, start, start + len(text), title, (), ends)


def row(item: Chunk, *places: Occurrence) -> ChunkRow:
    text = item.reference_text
    return ChunkRow(reference_id(text), item.text, item.title, item.token_ends, places)


def make_bank(
    path: Path, shards: Sequence[tuple[Sequence[DocumentRow], Sequence[ChunkRow]]]
) -> list[tuple[DocumentRow, list[Chunk]]]:
    """Writes a bank of text alone and reads its documents back."""
    with BankWriter(path) as writer:
        entries = [
            ShardEntry(
                rows=len(chunks),
                documents=len(documents),
                chunks=write_chunks(writer, chunks),
                documents_file=write_documents(writer, documents),
                memories=None,
                embeddings=write_embeddings(writer, [np.zeros((len(chunks), 64), np.float16)], 64),
                index=write_index(writer, b"IxFI" + bytes(60)),
            )
            for documents, chunks in shards
        ]
        counts = dict.fromkeys(
            ("documents", "tokens", "characters", "duplicates", "near_duplicates", "empty_documents"), 0
        )
        manifest = writer.commit(
            VersionContents(
                operation="compile",
                counts={
                    **counts,
                    "rejects": 0,
                    "unsupported_files": 0,
                    "chunks": sum(e.rows for e in entries),
                },
                sources={},
                chunker={},
                model={"name": "m", "fingerprint": "f", "kv_heads": 1, "head_dim": 2},
                memory={
                    "memory_layers": [0],
                    "memory_heads": [[0]],
                    "sparse_tokens": 1,
                    "reference_tokens": 128,
                },
                codec={
                    "spec": "none",
                    "bytes_per_vector": 4,
                    "compression": 1.0,
                    "key_error": None,
                    "value_error": None,
                },
                embedder={"name": "lexical", "dim": 64},
                index={"type": "Flat", "metric": "inner_product", "vectors": 0},
                libraries={},
                code_key="0" * 16,
                row_codes_bytes=8,
                row_positions_bytes=1,
                shards=tuple(entries),
                files=BankFileEntries(),
            ),
            None,
        )
    with BankFiles(path, manifest) as files:
        return list(stored_documents(files))


def comparable(documents: list[tuple[DocumentRow, list[Chunk]]]) -> list[Any]:
    return [(row, [replace(c, token_ends=tuple(c.token_ends)) for c in chunks]) for row, chunks in documents]


@pytest.mark.parametrize("minimum", [1, 2, 3, 100])
def test_documents_come_back_as_they_went_in(minimum: int, tmp_path: Path) -> None:
    texts = [f"text number {number % 11}, 文字" for number in range(60)]
    corpus: list[tuple[DocumentRow, list[Chunk]]] = []
    for number, size in enumerate([1, 0, 5, 25, 2, 1, 7, 0, 3]):
        chunks = [chunk(texts[(number * 7 + i) % 60], 100 * i, "T" if i % 3 else "") for i in range(size)]
        corpus.append((document(f"d{number}", size), chunks))
    shards = []
    for shard in cut_shards(corpus, minimum):
        names = [item.id for item, _, _ in shard.documents]
        shards.append(
            (
                [replace(item, chunks=here, part=part) for item, here, part in shard.documents],
                [
                    row(each, *(Occurrence(names[at], at, lo, hi) for at, lo, hi in occurrences))
                    for each, occurrences in zip(shard.chunks, shard.occurrences_by_row(), strict=True)
                ],
            )
        )
    assert len(shards) > 1 or minimum == 100
    assert any(item.part for documents, _ in shards for item in documents) or minimum > 3
    assert comparable(make_bank(tmp_path / "bank", shards)) == comparable(corpus)


def test_a_reference_text_that_a_document_divides_otherwise_comes_back_as_it_was(tmp_path: Path) -> None:
    first, second, third = chunk("b\nc", 0, "a"), chunk("a\nb\nc", 0), chunk("c", 5, "a\nb")
    places = [Occurrence("x", 0, 0, 3), Occurrence("y", 1, 0, 5), Occurrence("y", 1, 5, 6)]
    shard = [document("x", 1), document("y", 2)], [row(first, *places)]
    found = make_bank(tmp_path / "bank", [shard])
    ends = first.token_ends
    assert [[(c.title, c.text, tuple(c.token_ends)) for c in chunks] for _, chunks in found] == [
        [("a", "b\nc", ends)],
        [("", "a\nb\nc", ends), ("a\nb", "c", ends)],
    ]
    assert second.reference_text == third.reference_text == first.reference_text


CHUNK = chunk("some text", 0)


@pytest.mark.parametrize(
    ("shards", "problem"),
    [
        ([([document("x", 1)], [row(CHUNK, Occurrence("x", 1, 0, 9))])], "document 1 of 1"),
        ([([document("x", 2)], [row(CHUNK, Occurrence("x", 0, 0, 9))])], "has 1 chunks, its row says 2"),
        ([([document("x", 0)], [row(CHUNK, Occurrence("x", 0, 0, 9))])], "has 1 chunks, its row says 0"),
        ([([document("x", 1, part=1)], [row(CHUNK, Occurrence("x", 0, 0, 9))])], "part 1 of document 'x'"),
        (
            [
                ([document("x", 1)], [row(CHUNK, Occurrence("x", 0, 0, 9))]),
                ([document("x", 1, part=2)], [row(CHUNK, Occurrence("x", 0, 9, 18))]),
            ],
            "shard 1: holds part 2",
        ),
        (
            [
                ([document("x", 1)], [row(CHUNK, Occurrence("x", 0, 0, 9))]),
                ([document("y", 1, part=1)], [row(CHUNK, Occurrence("y", 0, 9, 18))]),
            ],
            "part 1 of document 'y'",
        ),
        ([([document("x", 1)], [row(CHUNK, Occurrence("x", 0, 0, 4))])], "has 4 characters"),
        ([([document("x", 1)], [row(CHUNK, Occurrence("x", 0, 0, 40))])], "has 40 characters"),
        ([([document("x", 1)], [row(CHUNK, Occurrence("x", 0, 9, 9))])], "has 0 characters"),
        ([([document("x", 1)], [row(CHUNK, Occurrence("x", 0, 9, 2))])], "has -7 characters"),
    ],
)
def test_rows_that_do_not_fit_together_are_corruption(shards: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=problem):
        make_bank(tmp_path / "bank", shards)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux to see the pages of a mapping")
def test_pages_that_were_read_can_be_handed_back(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(1 << 22)
    with BankWriter(tmp_path / "bank") as writer:
        entry = writer.add_file("eval", data)
    directory = os.open(tmp_path / "bank" / "data", os.O_RDONLY)
    file = MappedFile(entry, directory)
    os.close(directory)

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        at = next(number for number, line in enumerate(lines) if line.endswith(entry.name))
        return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1]) << 10

    assert bytes(file.data) == data
    assert resident() == len(data)
    file.release()
    assert resident() == 0
    assert bytes(file.data) == data
