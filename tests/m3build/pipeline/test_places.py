"""Places: the first occurrence wins, and samples depend on the set of references alone."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from m3build.pipeline.places import Places, by_shard


def keys(count: int) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(count)]


def test_the_first_place_of_a_reference_stays(tmp_path: Path) -> None:
    places = Places(tmp_path / "p")
    a, b, c = keys(3)
    assert places.add(0, [a, b]) == 2
    assert places.add(1, [b, c, a]) == 1
    assert list(places.firsts([a, b, c, b"x" * 32])) == [(0, 0), (0, 1), (1, 1), None]
    assert len(places) == 3


def test_many_keys_at_once_have_the_places_of_each(tmp_path: Path) -> None:
    places = Places(tmp_path / "p")
    many = keys(2500)
    places.add(3, many[::2])
    asked = [*random.Random(2).sample(many, len(many)), many[0], many[1], many[0]]
    expected = {key: (3, row) for row, key in enumerate(many[::2])}
    assert list(places.firsts(iter(asked))) == [expected.get(key) for key in asked]
    assert list(places.firsts([])) == []


class Statements:
    """A connection that remembers the distinct statements it was given."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.seen: set[str] = set()

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self.seen.add(statement)
        return self._connection.execute(statement, *values)


def test_shards_of_every_size_are_looked_up_by_one_statement(tmp_path: Path) -> None:
    # The module keeps 128 statements with all their memory: a statement for every remainder was 12 MB.
    places = Places(tmp_path / "p")
    many = keys(2500)
    places.add(0, many)
    places._db = seen = Statements(places._db)  # type: ignore[assignment]
    for size in (1, 2, 899, 900, 901, 2500):
        assert list(places.firsts(many[:size])) == [(0, row) for row in range(size)]
    assert len(seen.seen) == 1


def test_a_draw_is_the_same_for_any_order_of_the_corpus(tmp_path: Path) -> None:
    many = keys(500)
    shuffled = random.Random(1).sample(many, len(many))
    first, second = Places(tmp_path / "a"), Places(tmp_path / "b")
    first.add(0, many)
    second.add(0, shuffled)
    assert list(first.smallest_ids(40)) == list(second.smallest_ids(40)) == sorted(many)[:40]
    for places, order in ((first, many), (second, shuffled)):
        drawn = places.smallest(40, 10)
        assert [order[row] for _, row in drawn] == sorted(many)[10:50]
        assert not drawn[:, 0].any()


def test_what_was_drawn_is_given_a_shard_at_a_time_with_its_place_in_the_draw() -> None:
    drawn = np.array([(2, 7), (0, 3), (2, 1), (0, 9), (5, 0)], np.int32)
    assert list(by_shard(drawn)) == [(0, [3, 9], [1, 3]), (2, [1, 7], [2, 0]), (5, [0], [4])]
    assert list(by_shard(drawn[:0])) == []


def test_a_table_of_an_earlier_build_is_not_taken_over(tmp_path: Path) -> None:
    Places(tmp_path / "p").add(0, keys(2))
    assert len(Places(tmp_path / "p")) == 0
