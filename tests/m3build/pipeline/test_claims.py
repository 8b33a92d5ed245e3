"""Which of several banks a document is taken from."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from m3build.pipeline.claims import Claims
from m3build.records import Chunk
from m3build_formats.errors import CorruptError, InputError
from m3build_formats.shard_tables import DocumentRow

DOCUMENT = DocumentRow("d", "d.txt", 0, "Title", "{}", bytes(32), 10, 1)
CHUNKS = [Chunk("text", 0, 4, "", (), (4,))]


def taken(claims: Claims, *banks: int, document: DocumentRow = DOCUMENT) -> list[int]:
    return [bank for bank in banks if claims.takes(bank, document)]


@pytest.mark.parametrize(
    "other",
    [
        (replace(DOCUMENT, sha256=b"x" * 32), CHUNKS),
        (replace(DOCUMENT, title="Titel"), CHUNKS),
        (replace(DOCUMENT, metadata='{"a":1}'), CHUNKS),
        (replace(DOCUMENT, title="Title{", metadata="}"), CHUNKS),
        (DOCUMENT, [replace(CHUNKS[0], end=5)]),
        (DOCUMENT, [replace(CHUNKS[0], title="T")]),
        (DOCUMENT, []),
    ],
)
def test_other_content_under_an_id_is_refused_and_a_preference_decides(other: Any) -> None:
    with Claims(["a", "b"], None) as claims:
        claims.enter(0, DOCUMENT, CHUNKS)
        with pytest.raises(InputError, match="a and b hold different documents under the id 'd'"):
            claims.enter(1, *other)
    for prefer, winner in (("first", 0), ("last", 1)):
        with Claims(["a", "b"], prefer) as claims:  # type: ignore[arg-type]
            claims.enter(0, DOCUMENT, CHUNKS)
            claims.enter(1, *other)
            assert taken(claims, 1, 0) == [winner]
            assert (claims.shared, claims.replaced, len(claims)) == (0, 1, 1)


def test_where_it_stands_does_not_make_another_document() -> None:
    with Claims(["a", "b"], None) as claims:
        claims.enter(0, DOCUMENT, CHUNKS)
        claims.enter(1, replace(DOCUMENT, source="e.txt", position=7), CHUNKS)
        assert taken(claims, 1, 0) == [1], "the first that is asked for"
        assert (claims.shared, claims.replaced) == (1, 0)


def test_chunks_need_not_be_compared() -> None:
    with Claims(["a", "b"], None, compare_chunks=False) as claims:
        claims.enter(0, DOCUMENT, CHUNKS)
        claims.enter(1, DOCUMENT, [])
        assert taken(claims, 0, 1) == [0]


def test_an_id_twice_in_one_bank_is_corruption() -> None:
    with Claims(["a", "b"], "last") as claims:
        claims.enter(0, DOCUMENT, CHUNKS)
        claims.enter(1, DOCUMENT, CHUNKS)
        with pytest.raises(CorruptError, match="b: holds the document 'd' twice"):
            claims.enter(1, DOCUMENT, CHUNKS)


def test_what_was_not_entered_is_not_taken() -> None:
    with Claims(["a", "b"], None) as claims:
        assert taken(claims, 0, 1) == []


@pytest.mark.parametrize("prefer", ["first", "last"])
def test_each_document_is_taken_once_from_the_bank_it_should_come_from(prefer: Any) -> None:
    draw = random.Random(prefer)
    holders: dict[str, dict[int, int]] = defaultdict(dict)
    with Claims(list("abcd"), prefer) as claims:
        for bank in range(4):
            for number in draw.sample(range(60), 35):
                content = draw.choice([0, 0, 0, 1, 2])
                holders[str(number)][bank] = content
                row = replace(DOCUMENT, id=str(number), sha256=bytes([content]) * 32)
                claims.enter(bank, row, CHUNKS)
        dropped = 0
        for name, banks in holders.items():
            asked = draw.sample(sorted(banks), len(banks))
            found = taken(claims, *asked, document=replace(DOCUMENT, id=name))
            contested = len(set(banks.values())) > 1
            assert found == [(min if prefer == "first" else max)(banks) if contested else asked[0]]
            dropped += len(banks) - 1
        assert claims.shared + claims.replaced == dropped
        assert len(claims) == len(holders)
