"""Places: the first occurrence wins, and samples depend on the set of references alone."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from m3build.pipeline.places import Places


def keys(count: int) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(count)]


def test_the_first_place_of_a_reference_stays(tmp_path: Path) -> None:
    places = Places(tmp_path / "p")
    a, b, c = keys(3)
    assert places.add(0, [a, b]) == 2
    assert places.add(1, [b, c, a]) == 1
    assert [places.first(k) for k in (a, b, c, b"x" * 32)] == [(0, 0), (0, 1), (1, 1), None]
    assert len(places) == 3


def test_a_draw_is_the_same_for_any_order_of_the_corpus(tmp_path: Path) -> None:
    many = keys(500)
    shuffled = random.Random(1).sample(many, len(many))
    first, second = Places(tmp_path / "a"), Places(tmp_path / "b")
    first.add(0, many)
    second.add(0, shuffled)
    assert (
        [k for k, _, _ in first.smallest(40, 10)]
        == [k for k, _, _ in second.smallest(40, 10)]
        == sorted(many)[10:50]
    )


def test_a_table_of_an_earlier_build_is_not_taken_over(tmp_path: Path) -> None:
    Places(tmp_path / "p").add(0, keys(2))
    assert len(Places(tmp_path / "p")) == 0
