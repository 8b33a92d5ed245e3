"""Names of files: relative, printable, distinct, whatever the order of SOURCEs."""

from __future__ import annotations

import os
import random

from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus.names import distinct_names, printable


def test_a_name_is_its_path_below_the_source() -> None:
    assert distinct_names([("/x/corpus/a/b.txt", "a/b.txt")]) == {"/x/corpus/a/b.txt": "a/b.txt"}


def test_namesakes_get_the_parents_that_tell_them_apart_and_others_stay() -> None:
    found = [("/x/old/docs/a.txt", "a.txt"), ("/x/new/docs/a.txt", "a.txt"), ("/x/new/docs/b.txt", "b.txt")]
    assert distinct_names(found) == {
        "/x/old/docs/a.txt": "old/docs/a.txt",
        "/x/new/docs/a.txt": "new/docs/a.txt",
        "/x/new/docs/b.txt": "b.txt",
    }


def test_a_lengthened_name_that_meets_another_is_lengthened_again() -> None:
    names = distinct_names([("/p/a/x", "x"), ("/p/b/x", "x"), ("/q/a/x", "a/x")])
    assert len(set(names.values())) == 3
    assert not any(name.startswith("/") for name in names.values())


def test_a_file_found_twice_counts_once_under_its_longest_name() -> None:
    assert distinct_names([("/x/a/b.txt", "b.txt"), ("/x/a/b.txt", "a/b.txt")]) == {"/x/a/b.txt": "a/b.txt"}


def test_bytes_and_controls_that_cannot_be_shown_are_escaped() -> None:
    assert printable(os.fsdecode(b"caf\xe9/a\nb\x1b")) == "caf\\xe9/a\\x0ab\\x1b"


def test_names_that_only_escapes_make_equal_stay_distinct() -> None:
    names = distinct_names([(f"/d/{name}", name) for name in (os.fsdecode(b"\xff"), "\\xff")])
    assert sorted(names.values()) == ["\\xff", "\\xff~2"]


PARTS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5)


@given(st.lists(st.tuples(PARTS, st.integers(1, 5)), max_size=12), st.randoms(use_true_random=False))
def test_names_are_distinct_tails_of_paths_in_any_order(
    paths: list[tuple[list[str], int]], order: random.Random
) -> None:
    found = [("/" + "/".join(parts), "/".join(parts[-min(depth, len(parts)) :])) for parts, depth in paths]
    names = distinct_names(found)
    assert len(set(names.values())) == len(names)
    assert all(path.endswith(f"/{name}") for path, name in names.items())
    order.shuffle(found)
    assert distinct_names(found) == names
