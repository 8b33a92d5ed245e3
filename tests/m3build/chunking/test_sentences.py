"""Where a person would say that a sentence ends."""

from __future__ import annotations

import pytest

from m3build.chunking.sentences import last_clause_end, last_sentence_end


def sentences(text: str) -> list[str]:
    """All sentence ends, found from the back one after the other; the last piece may be unfinished."""
    pieces = []
    end = len(text)
    while (at := last_sentence_end(text, 0, end - 1)) > 0:
        pieces.append(text[at:end].strip())
        end = at
    return [*reversed([*pieces, text[:end].strip()])]


@pytest.mark.parametrize(
    "expected",
    [
        ["It is late.", "We go home now"],
        ["Really?!", "Yes!", "So it goes..."],
        ['She said "Stop."', "Then she left."],
        ["(This is an aside.)", "And this is not."],
        ["Use ``read()``.", "*Never* write."],
        ["He left in 1999.", "She stayed."],
        ["It ended.\n\n", "The rest is silence."],
        ["今天很冷。", "我们回家吧！", "好吗？", "好"],
        ["他说：“走吧。”", "然后走了。"],
        ["彼は「行こう。」", "と言った。"],
        ["これは本です。", "あれは？！", "はい。"],
        ["一；", "二；", "三"],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["هل انت هنا؟", "نعم"],
        ["Է՞ր։", "Այո։"],
        ["ជាភាសា។", "ខ្មែរ"],
        ["Das war gut…", "Oder?"],
    ],
)
def test_sentences_end_at_their_stops(expected: list[str]) -> None:
    joint = "" if any(character > "\u2fff" for character in "".join(expected)) else " "
    assert sentences(joint.join(expected)) == [piece.strip() for piece in expected]


@pytest.mark.parametrize(
    "text",
    [
        "Python 3.11 is faster than version 2.7.18 was",
        "See e.g. The Times, i.e. A newspaper",
        "Dr. Maria Lopez and Prof. Kwame met Mr. Tan",
        "J. R. R. Tolkien wrote it",
        "The U.S. Senate voted",
        "See Fig. 3 and Vol. 12",
        "Smith et al. 2019 found it",
        "1. Open the door",
        "   12. Close it",
        "wait... what is it",
        "It costs $3.50 or 1.20 euro",
        '"Stop!" he cried, "or I shoot!" said he',
        "the file m3build.toml and os.path.join",
        "at 10 a.m. on Monday",
        "等等……and so on",
    ],
)
def test_what_only_looks_like_a_stop_ends_no_sentence(text: str) -> None:
    assert last_sentence_end(text, 0, len(text) - 1) == -1


def test_only_ends_within_the_window_count() -> None:
    text = "One. Two. Three. Four."
    assert last_sentence_end(text, 4, 12) == 9
    assert last_sentence_end(text, 9, 15) == -1
    assert last_sentence_end(text, 9, 16) == 16


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("one, two three", 4),
        ("一、二三", 2),
        ("key: value", 4),
        ("12:30 and 1,000", -1),
        ("(a, b), c d", 7),
        ("那么，（甲）乙", 3),
    ],
)
def test_clauses_end_behind_commas_that_are_followed_by_space_or_wide(text: str, end: int) -> None:
    assert last_clause_end(text, 0, len(text) - 1) == end


@pytest.mark.parametrize("run", [".", "!", "?)", "。", ".'", "…", ", "])
def test_runs_of_stops_take_no_quadratic_time(run: str) -> None:
    text = run * 20_000
    last_sentence_end(text, 0, len(text) - 1)
    last_clause_end(text, 0, len(text) - 1)
