"""Shards: cut by content, equal texts folded, nothing lost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.pipeline.sharder import (
    MAXIMUM_OVER_MINIMUM,
    MENTIONS_A_ROW,
    Shard,
    cut_shards,
    is_boundary,
    reference_id,
)
from m3build.records import Chunk
from m3build_formats.shard_tables import DocumentRow


def chunk(text: str, start: int) -> Chunk:
    return Chunk(text, start, start + len(text), "", (1, 2), (1, len(text)))


def document(name: str, texts: Sequence[str]) -> tuple[DocumentRow, list[Chunk]]:
    row = DocumentRow(name, name, 0, "", "{}", hashlib.sha256(name.encode()).digest(), 100, len(texts), 0)
    return row, [chunk(text, 10 * at) for at, text in enumerate(texts)]


corpora = st.lists(st.lists(st.sampled_from([f"text {i}" for i in range(60)]), max_size=12), max_size=25).map(
    lambda many: [document(f"doc-{at}", texts) for at, texts in enumerate(many)]
)


@settings(max_examples=200, deadline=None)
@given(corpora, st.integers(1, 9))
def test_every_occurrence_of_every_document_is_kept_in_order(
    corpus: list[tuple[DocumentRow, list[Chunk]]], minimum: int
) -> None:
    found: dict[str, list[tuple[int, str]]] = {row.id: [] for row, _ in corpus}
    for shard in cut_shards(corpus, minimum):
        here: list[tuple[str, int, str]] = []
        for chunk, occurrences in zip(shard.chunks, shard.occurrences_by_row(), strict=True):
            here += [(shard.documents[at][0].id, start, chunk.text) for at, start, _ in occurrences]
        for name, start, text in sorted(here):
            found[name].append((start, text))
    assert found == {row.id: [(c.start, c.text) for c in chunks] for row, chunks in corpus}


@settings(max_examples=200, deadline=None)
@given(corpora, st.integers(1, 9))
def test_shards_keep_their_bounds_and_fold_equal_texts(
    corpus: list[tuple[DocumentRow, list[Chunk]]], minimum: int
) -> None:
    shards = list(cut_shards(corpus, minimum))
    for shard in shards:
        assert len(shard.rows) <= minimum * MAXIMUM_OVER_MINIMUM
        texts = [chunk.text for chunk in shard.chunks]
        assert len(set(texts)) == len(texts)
        assert list(shard.rows.items()) == [(reference_id(text), at) for at, text in enumerate(texts)]
        assert sum(here for _, here, _ in shard.documents) == shard.occurrences
        assert shard.mentions <= minimum * MAXIMUM_OVER_MINIMUM * MENTIONS_A_ROW + 1
    assert all(
        len(shard.rows) >= minimum or shard.mentions >= minimum * MENTIONS_A_ROW for shard in shards[:-1]
    )


@settings(max_examples=100, deadline=None)
@given(corpora, st.integers(1, 9))
def test_parts_of_a_document_are_numbered_and_start_once(
    corpus: list[tuple[DocumentRow, list[Chunk]]], minimum: int
) -> None:
    parts: dict[str, list[int]] = {}
    for shard in cut_shards(corpus, minimum):
        for row, _, part in shard.documents:
            parts.setdefault(row.id, []).append(part)
    assert set(parts) == {row.id for row, _ in corpus}
    assert all(numbers == list(range(len(numbers))) for numbers in parts.values())


def names(shards: Sequence[Shard]) -> list[tuple[str, ...]]:
    return [tuple(row.id for row, _, _ in shard.documents) for shard in shards]


def test_an_edit_changes_only_the_shards_around_it() -> None:
    corpus = [document(f"doc-{i}", [f"{i}-{j}" for j in range(1 + i % 5)]) for i in range(2000)]
    before = names(list(cut_shards(corpus, 64)))
    edited = [*corpus[:1000], document("new", ["a", "b", "c"]), *corpus[1000:]]
    after = names(list(cut_shards(edited, 64)))
    changed = [shard for shard in after if shard not in set(before)]
    assert len(before) > 20
    assert 1 <= len(changed) <= 4


def test_boundaries_are_about_one_minimum_apart_whatever_the_length_of_documents() -> None:
    for length in (1, 10, 100):
        count = 100_000 // length
        rows = [replace(document(f"{length}-{i}", [])[0], chunks=length) for i in range(count)]
        chunks_apart = count * length / sum(is_boundary(row, 500) for row in rows)
        assert 400 < chunks_apart < 650


@pytest.mark.parametrize("texts", [["the same"], ["the same"] * 7, ["left out"], []])
def test_a_shard_closes_however_few_texts_its_documents_have(texts: list[str]) -> None:
    corpus = [document(f"doc-{at}", texts) for at in range(4000)]
    shards = list(cut_shards(corpus, 16, lambda key, text: text == "left out"))
    assert len(shards) >= 4000 // (16 * MAXIMUM_OVER_MINIMUM * MENTIONS_A_ROW)
    assert max(shard.mentions for shard in shards) <= 16 * MAXIMUM_OVER_MINIMUM * MENTIONS_A_ROW + 1
    assert [row.id for shard in shards for row, _, part in shard.documents if not part] == [
        row.id for row, _ in corpus
    ]


def test_one_document_that_repeats_itself_is_divided() -> None:
    shards = list(cut_shards([document("d", ["again"] * 1000)], 2))
    assert [part for shard in shards for _, _, part in shard.documents] == list(range(len(shards)))
    assert sum(shard.occurrences for shard in shards) == 1000
    assert max(shard.mentions for shard in shards) <= 2 * MAXIMUM_OVER_MINIMUM * MENTIONS_A_ROW + 1


def test_an_edit_changes_only_the_shards_around_it_where_texts_repeat_too() -> None:
    corpus = [document(f"doc-{i}", [f"label {i % 3}"]) for i in range(6000)]
    before = names(list(cut_shards(corpus, 16)))
    after = names(list(cut_shards([*corpus[:3000], document("new", ["a"]), *corpus[3000:]], 16)))
    changed = [shard for shard in after if shard not in set(before)]
    assert len(before) > 20
    assert 1 <= len(changed) <= 4


def test_what_is_left_out_is_asked_once_a_text_and_shard_and_not_written() -> None:
    asked: list[str] = []

    def leave_out(key: bytes, text: str) -> bool:
        asked.append(text)
        return text == "no"

    shards = list(cut_shards([document("d", ["yes", "no", "yes", "no"])], 10, leave_out))
    assert [chunk.text for chunk in shards[0].chunks] == ["yes"]
    assert asked == ["yes", "no", "no"]
    assert shards[0].documents[0][1] == 2
