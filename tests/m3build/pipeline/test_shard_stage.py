"""The corpus as shards on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from m3build.pipeline.shard_stage import ShardedCorpus, shard_corpus
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


def test_no_scratch_file_stays_open_where_the_corpus_ends_with_an_error(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[DocumentRow, list[Chunk]]]:
        yield from documents(["one"], ["two"])
        raise InputError("too many rejects")

    with pytest.raises(InputError, match="too many"):
        sharded(tmp_path, broken(), "")
    opened = Path("/proc/self/fd")
    if opened.exists():
        assert not [file for file in opened.iterdir() if str(tmp_path) in str(file.resolve())]
