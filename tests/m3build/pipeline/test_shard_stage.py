"""The corpus as shards on disk."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from m3build.embed.lexical import LexicalEmbedder
from m3build.pipeline import vector_stage
from m3build.pipeline.ledger import Ledger
from m3build.pipeline.shard_stage import ShardedCorpus, shard_corpus
from m3build.pipeline.watch import Watch
from m3build.progress import Silent
from m3build.records import Chunk, Reject
from m3build_formats.data_directory import DataDirectory
from m3build_formats.errors import InputError
from m3build_formats.shard_tables import DocumentRow


def documents(*texts: Sequence[str]) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    for at, own in enumerate(texts):
        name = f"doc-{at}"
        row = DocumentRow(name, name, 0, "", "{}", hashlib.sha256(name.encode()).digest(), 9, len(own), 0)
        yield row, [Chunk(text, 0, len(text), "", (1, 2), (1, len(text))) for text in own]


def refuse(reject: Reject) -> NoReturn:
    pytest.fail(str(reject))


def sharded(place: Path, corpus: Iterator[tuple[DocumentRow, list[Chunk]]], left_out: str) -> ShardedCorpus:
    (place / "data").mkdir()
    with DataDirectory(place / "data") as data:
        return shard_corpus(corpus, 1, lambda key, text: text == left_out, refuse, data, place / "scratch")


def test_a_shard_all_of_whose_chunks_are_left_out_has_documents_and_no_rows(tmp_path: Path) -> None:
    found = sharded(tmp_path, documents(["one"], ["almost one"], ["almost one"]), "almost one")
    assert sum(shard.rows for shard in found.shards) == 1
    assert sum(shard.document_rows for shard in found.shards) == 3
    assert found.counts["near_duplicates"] == 2
    assert [ids.tolist() for ids in found.shards[0].references([0])] == [[1, 2]]
    found.places.close()


def test_documents_without_chunks_make_shards_without_rows(tmp_path: Path) -> None:
    found = sharded(tmp_path, documents([], []), "")
    assert sum(shard.rows for shard in found.shards) == 0
    assert found.counts["documents"] == 2
    assert len(found.places) == 0
    found.places.close()


def test_memory_does_not_grow_with_the_ids_that_are_given_twice(tmp_path: Path) -> None:
    few, many = 3_000, 12_000
    peaks = []
    for count in (few, few, many):
        place = tmp_path / str(len(peaks))
        place.mkdir()
        (place / "data").mkdir()
        again = (next(documents(["one"])) for _ in range(count))
        tracemalloc.start()
        with DataDirectory(place / "data") as data:
            found = shard_corpus(again, 4, None, lambda _: None, data, place / "scratch")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found.places.close()
        assert found.counts["rejects"] == count - 1 == sum(1 for _ in found.rejects())
    assert peaks[2] - peaks[1] < 40 * (many - few), peaks


def test_queries_that_tune_an_index_are_drawn_from_all_of_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sharded(tmp_path, documents(*([f"text {number}"] for number in range(2000))), "")
    monkeypatch.setattr(vector_stage, "QUERY_REFERENCES", 64)
    embedder, asked = LexicalEmbedder(), []
    embedder.fit(f"text {number}" for number in range(2000))
    embed_queries = embedder.embed_queries
    monkeypatch.setattr(embedder, "embed_queries", lambda texts: asked.append(texts) or embed_queries(texts))
    vector_stage.train_index("IVF4,SQfp16", 2000, embedder, found.places, found.shards, tmp_path / "data")
    numbers = [int(text.split()[1]) for text in asked[0]]
    assert len(numbers) == 64
    assert 700 < sum(numbers) / 64 < 1300
    assert sum(number >= 1500 for number in numbers) >= 6
    found.places.close()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    found = sharded(tmp_path, documents(["one text"]), "")
    embedder = LexicalEmbedder()
    embedder.fit(["one text"])
    monkeypatch.setattr(
        embedder, "embed", lambda texts: np.full((len(texts), embedder.dim), wrong, np.float16)
    )
    with DataDirectory(tmp_path / "data") as data:
        state = vector_stage.train_index("Flat", 1, embedder, found.places, found.shards, data.path)
        before = set(data.path.iterdir())
        writer = vector_stage.VectorWriter(
            embedder, state, {}, {}, data, Ledger(tmp_path / "ledger"), tmp_path / "scratch"
        )
        with (
            Watch(Silent()).stage("embed", 1, "chunks") as stage,
            pytest.raises(InputError, match="not finite"),
        ):
            writer.write_all(found.shards, stage)
        assert set(data.path.iterdir()) == before
    found.places.close()


def test_no_scratch_file_stays_open_where_the_corpus_ends_with_an_error(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[DocumentRow, list[Chunk]]]:
        yield from documents(["one"], ["two"])
        raise InputError("too many rejects")

    with pytest.raises(InputError, match="too many"):
        sharded(tmp_path, broken(), "")
    opened = Path("/proc/self/fd")
    if opened.exists():
        assert not [file for file in opened.iterdir() if str(tmp_path) in str(file.resolve())]
