"""reStructuredText: the text stays, section titles and their levels are found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus.readers.restructured_text import extract, find_headings


def found(text: str) -> list[tuple[int, str]]:
    return [(heading.level, heading.text) for heading in find_headings(text)]


def test_levels_follow_the_order_in_which_styles_come(make: Any, read: Any) -> None:
    text = "=====\n Doc\n=====\n\nOne\n===\n\nTwo\n---\nwords\n\nThree\n=====\n"
    document = read(make("a.rst.txt", text)).only
    assert document.text == text
    assert document.title == "Doc"
    assert [(h.level, h.text) for h in document.headings] == [
        (1, "Doc"),
        (2, "One"),
        (3, "Two"),
        (2, "Three"),
    ]
    assert [text[h.start :].split("\n")[0] for h in document.headings] == ["=====", "One", "Two", "Three"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Title\n==\n", []),
        ("Title longer\n======\n", [(1, "Title longer")]),
        ("标题\n====\n", [(1, "标题")]),
        ("标题\n==\n", []),
        ("A\n-\n", [(1, "A")]),
        ("para\nTitle\n=====\n", []),
        (".. directive::\n\n   Indented\n   ====\n", []),
        ("=====  =====\ncell   cell\n=====  =====\n", []),
        ("Title\n=-=-=\n", []),
        ("One\n===\nTwo\n---\n", [(1, "One"), (2, "Two")]),
        ("----\n\ntransition\n", []),
        ("=====\nTitle\n", []),
        ("", []),
    ],
)
def test_titles_are_told_from_other_punctuation(text: str, expected: list[tuple[int, str]]) -> None:
    assert found(text) == expected


@given(st.text(alphabet="=-~ \nab标.:", max_size=200))
def test_any_text_is_read_and_every_title_starts_a_line(text: str) -> None:
    extracted = extract(text)
    assert extracted.text == text
    starts = [heading.start for heading in extracted.headings]
    assert starts == sorted(set(starts))
    assert all(start == 0 or text[start - 1] == "\n" for start in starts)
