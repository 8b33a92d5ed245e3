"""Markdown: the text stays, titles and headings are found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus.readers.markdown import extract, find_headings


def found(text: str) -> list[tuple[int, str]]:
    return [(heading.level, heading.text) for heading in find_headings(text)]


def test_the_text_stays_and_headings_point_into_it(make: Any, read: Any) -> None:
    text = "intro\n\n# Top #\n\n## Sub *one*\n\nwords\n\nUnder\n=====\n\nLower\n---\n"
    document = read(make("a.md", text)).only
    assert document.text == text
    assert document.title == "Top"
    assert [(h.level, h.text) for h in document.headings] == [
        (1, "Top"),
        (2, "Sub *one*"),
        (1, "Under"),
        (2, "Lower"),
    ]
    assert [text[h.start :].split("\n")[0] for h in document.headings] == [
        "# Top #",
        "## Sub *one*",
        "Under",
        "Lower",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```\n# no\n```\n# yes", [(1, "yes")]),
        ("~~~ py\n# no\n```\n~~~\n# yes", [(1, "yes")]),
        ("````\n```\n# no\n````\n# yes", [(1, "yes")]),
        ("    # code", []),
        ("#no space", []),
        ("####### seven", []),
        ("#", [(1, "")]),
        ("## C# #", [(2, "C#")]),
        ("- item\n---", []),
        ("> quote\n---", []),
        ("---\n", []),
        ("a\n\n---\n", []),
        ("<!--\n# no\n-->\n# yes", [(1, "yes")]),
        ("<!-- one line -->\n# yes", [(1, "yes")]),
        ("---\ntitle: x\n---\n# yes", [(1, "yes")]),
        ("line one\nline two\n===", [(1, "line two")]),
        ("   # three spaces", [(1, "three spaces")]),
        ("`inline` text\n# yes", [(1, "yes")]),
    ],
)
def test_headings_are_those_of_commonmark(text: str, expected: list[tuple[int, str]]) -> None:
    assert found(text) == expected


def test_the_title_is_the_first_heading_of_the_highest_level() -> None:
    assert extract("## b\n# a\n# c\n").title == "a"
    assert extract("no heading").title == ""


@given(st.text(alphabet="#=-`~<!> \nab\t*1.", max_size=200))
def test_any_text_is_read_and_every_heading_starts_a_line(text: str) -> None:
    extracted = extract(text)
    assert extracted.text == text
    starts = [heading.start for heading in extracted.headings]
    assert starts == sorted(set(starts))
    assert all(start == 0 or text[start - 1] == "\n" for start in starts)
