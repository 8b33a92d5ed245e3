"""Which place is taken among several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.chunking.boundaries import best_cut
from m3build.chunking.outline import Outline
from m3build.records import Document, Heading


def cut(text: str, end: int | None = None, headings: tuple[Heading, ...] = ()) -> str:
    """What is before the best cut of a window over all but the last character of ``text`` (or up to
    ``end``).
    """
    outline = Outline(Document("id", "source", 0, text, headings=headings))
    return text[: best_cut(text, 0, len(text) - 1 if end is None else end, outline)].rstrip()


FILLER = "words and words and words and words and words and words and words"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            f"{FILLER}\n{FILLER}.",
            "\n\nA sentence here. And then\nsome, more words",
        ),  # blank line before sentence
        (f"{FILLER}\n{FILLER}.", "\n   \nA sentence here. And then\nsome, more words"),
        (f"{FILLER}. {FILLER}.", " And a line that goes on\nand on, some more"),  # sentence before line
        (f"{FILLER}\n{FILLER}", "\nand on, some more"),  # line before clause
        (f"{FILLER} {FILLER},", " some more words"),  # clause before white space
        (f"{FILLER} {FILLER} some", " morewords"),  # white space before the inside of a word
    ],
)
def test_the_stronger_boundary_wins_in_the_last_part_of_the_window(before: str, after: str) -> None:
    assert cut(before + after) == before


def test_of_equal_boundaries_the_last_is_taken() -> None:
    assert cut("One is one. Two is two. Three is three. Four is") == "One is one. Two is two. Three is three."


def test_a_strong_boundary_that_would_waste_half_of_the_window_is_passed_over() -> None:
    assert cut(f"Short.\n\n{FILLER}. {FILLER[:40].capitalize()} and mor") == f"Short.\n\n{FILLER}."


def test_a_word_longer_than_the_rest_of_the_window_is_not_split_when_white_space_comes_before() -> None:
    assert cut("a few words " + "x" * 100) == "a few words"


def test_a_word_longer_than_the_window_is_split_at_its_end() -> None:
    assert cut("x" * 100, 60) == "x" * 60


def test_a_character_of_several_code_points_is_not_split() -> None:
    assert cut("x" * 50 + "👩\u200d👩\u200d👧" + "x" * 50, 53) == "x" * 50


def test_a_cluster_longer_than_the_window_is_split_between_code_points() -> None:
    assert len(cut("e" + "\u0301" * 100, 60)) == 60


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("甲乙丙丁戊己庚辛，壬癸", 9, "甲乙丙丁戊己庚辛，"),
        ("甲乙丙丁戊己庚辛壬癸子丑", 9, "甲乙丙丁戊己庚辛壬"),
        ("甲乙丙丁戊己庚辛「壬癸子", 9, "甲乙丙丁戊己庚辛"),  # no opening bracket at the end
        ("甲乙丙丁戊己庚辛壬」癸子", 9, "甲乙丙丁戊己庚辛"),  # no closing bracket at the start
        ("ひらがなひらがなきょう", 9, "ひらがなひらがな"),  # no small kana at the start
        ("นนนนนนนนนเน", 10, "นนนนนนนนน"),  # a Thai vowel written first stays with its consonant
        (
            "甲乙丙丁 abc 戊己庚辛壬癸子丑",
            14,
            "甲乙丙丁 abc 戊己庚辛壬",
        ),  # early white space does not empty a Chinese chunk
    ],
)
def test_scripts_without_spaces_are_cut_between_characters(text: str, end: int, expected: str) -> None:
    assert cut(text, end) == expected


def test_a_blank_line_behind_a_colon_announces_what_follows() -> None:
    assert cut(f"{FILLER}. {FILLER}. For example:\n\n    some code her") == f"{FILLER}. {FILLER}."


def test_a_short_line_alone_without_a_stop_goes_with_what_follows() -> None:
    text = f"{FILLER}. {FILLER}.\n\n3.1 The second stage\n\n{FILLER}"
    assert cut(text, text.index("stage") + 20) == f"{FILLER}. {FILLER}."


def heading_document(text: str, *headings: tuple[str, int]) -> tuple[Heading, ...]:
    return tuple(Heading(text.index(words), level, words) for words, level in headings)


def test_a_heading_goes_with_the_text_under_it() -> None:
    text = f"{FILLER}. {FILLER}.\n\nThe heading\n===========\n\n{FILLER}. {FILLER}"
    headings = heading_document(text, ("The heading", 1))
    assert cut(text, text.index("=\n\n") + 10, headings) == f"{FILLER}. {FILLER}."


def test_a_heading_early_in_the_window_is_not_left_hanging() -> None:
    text = f"{FILLER}.\n\nThe heading\n\n{FILLER} {FILLER} {FILLER} {FILLER}"
    window = text.index("heading") + 40
    assert cut(text, window, heading_document(text, ("The heading", 1))) not in (f"{FILLER}.\n\nThe heading",)


def test_of_several_headings_the_highest_is_taken() -> None:
    text = f"{FILLER}.\n\nChapter\n\n{FILLER[:20]}.\n\nSection\n\n{FILLER}"
    headings = heading_document(text, ("Chapter", 1), ("Section", 2))
    assert cut(text, text.index("Section") + 20, headings) == f"{FILLER}."


def test_headings_that_follow_each_other_stay_together() -> None:
    text = f"{FILLER}.\n\nChapter\n\nSection\n\n{FILLER}"
    headings = heading_document(text, ("Chapter", 2), ("Section", 1))
    assert cut(text, text.index("Section") + 20, headings) == f"{FILLER}."


def test_an_overline_belongs_to_its_heading() -> None:
    text = f"{FILLER}.\n\n=======\nChapter\n=======\n\n{FILLER}"
    assert cut(text, text.index("Chapter") + 20, heading_document(text, ("Chapter", 1))) == f"{FILLER}."


@given(text=st.text(min_size=2, max_size=80), data=st.data())
def test_a_cut_always_lies_in_the_window(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 2))
    end = data.draw(st.integers(start + 1, len(text) - 1))
    starts = data.draw(st.sets(st.integers(0, len(text) - 1), max_size=3))
    headings = tuple(Heading(place, data.draw(st.integers(1, 3)), "x") for place in sorted(starts))
    outline = Outline(Document("id", "source", 0, text, headings=headings))
    assert start < best_cut(text, start, end, outline) <= end
