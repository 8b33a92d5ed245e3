"""Near-duplicates: what is left out, what never is, and that nothing but the corpus's order decides."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m3build.chunking import near_duplicates as module
from m3build.chunking.near_duplicates import FILE_NAME, NearDuplicates, shingles
from m3build_formats.errors import ResourceError, UsageError

datasketch = pytest.importorskip("datasketch", reason="needs the near-duplicates extra")

WORDS = [a + b for a in "bdfgklmn" for b in ("ana", "eri", "ilo", "onu", "usa")]


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def answers(texts: Iterable[str], threshold: float) -> list[bool]:
    with tempfile.TemporaryDirectory() as directory, NearDuplicates(threshold, Path(directory)) as near:
        return [near.is_duplicate(key(text), text) for text in texts]


def exact_jaccard(a: str, b: str) -> float:
    """Of texts of more than three small-letter words, without the code under test."""
    first, second = (
        {tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (a.split(), b.split())
    )
    return len(first & second) / len(first | second)


def prose(seed: int, length: int = 90) -> list[str]:
    return [WORDS[at] for at in np.random.default_rng(seed).integers(0, len(WORDS), length)]


def with_changes(words: list[str], places: Iterable[int]) -> str:
    changed = list(words)
    for at in places:
        changed[at] = f"other{at}"
    return " ".join(changed)


texts = st.lists(st.sampled_from(WORDS), min_size=4, max_size=60).map(" ".join)


def test_a_text_with_one_word_changed_is_left_out() -> None:
    words = prose(0)
    assert answers([" ".join(words), with_changes(words, [40])], 0.8) == [False, True]


def test_a_text_that_shares_half_its_shingles_is_kept() -> None:
    words = prose(1)
    half = with_changes(words, range(8, 90, 12))
    assert 0.4 < exact_jaccard(" ".join(words), half) < 0.7
    assert answers([" ".join(words), half], 0.9) == [False, False]


def test_unrelated_texts_are_kept_at_a_low_threshold() -> None:
    assert not any(answers([" ".join(prose(seed)) for seed in range(50)], 0.3))


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_texts_far_below_the_threshold_are_never_left_out(a: str, b: str) -> None:
    assume(exact_jaccard(a, b) < 0.4)
    assert answers([a, b], 0.85) == [False, False]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 89))
def test_texts_far_above_the_threshold_are_always_left_out(seed: int, place: int) -> None:
    words = prose(seed)
    assert answers([" ".join(words), with_changes(words, [place])], 0.7) == [False, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=40),
    st.data(),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_other_white_space_punctuation_and_case_never_hide_a_duplicate(
    words: list[str], data: st.DataObject, threshold: float
) -> None:
    gaps = data.draw(
        st.lists(
            st.sampled_from(["\n", "\t ", "\u3000", "\u00a0", ", ", "\u2014"]),
            min_size=len(words),
            max_size=len(words),
        )
    )
    other = "".join(gap + word.upper() for gap, word in zip(gaps, words, strict=True))
    assert answers([" ".join(words), other], threshold) == [False, True]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sets(st.integers(0, 59), max_size=12)), max_size=12, unique_by=str
    ),
    st.sampled_from([0.05, 0.3, 0.5, 0.65, 0.8, 0.9, 0.99, 1.0]),
)
def test_bands_find_what_comparing_with_every_kept_text_finds(
    edits: list[tuple[int, set[int]]], threshold: float
) -> None:
    corpus = list(dict.fromkeys(with_changes(prose(seed, 60), places) for seed, places in edits))
    kept: list[Any] = []
    expected = []
    for text in corpus:
        minhash = datasketch.MinHash(128, 1, hashfunc=zlib.crc32, scheme="affine32")
        minhash.update_batch([shingle.encode() for shingle in shingles(text)])
        expected.append(any(minhash.jaccard(other) >= threshold for other in kept))
        if not expected[-1]:
            kept.append(minhash)
    assert answers(corpus, threshold) == expected


def test_an_exact_copy_of_a_kept_text_is_not_a_near_duplicate() -> None:
    words = prose(2)
    text = " ".join(words)
    assert answers([text, text, with_changes(words, [3]), text], 0.8) == [False, False, True, False]


def test_a_text_that_was_left_out_is_left_out_again() -> None:
    words = prose(3)
    first, near = " ".join(words), with_changes(words, [70])
    assert answers([first, near, near, " ".join(prose(4)), near], 0.8) == [False, True, True, False, True]


def test_a_text_is_compared_with_kept_texts_and_not_with_those_left_out() -> None:
    words = prose(5)
    a, b, c = " ".join(words), with_changes(words, [20]), with_changes(words, [20, 45, 60, 75])
    assert exact_jaccard(b, c) > 0.8 > 0.77 > exact_jaccard(a, c)
    assert answers([b, c], 0.79) == [False, True]
    assert answers([a, b, c], 0.79) == [False, True, False]


def test_more_candidates_than_are_read_at_a_time_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CANDIDATES_AT_A_TIME", 2)
    words = prose(6)
    family = [with_changes(words, range(start, 90, 11)) for start in range(11)]
    found = answers([*family, with_changes(words, [*range(10, 90, 11), 0])], 0.75)
    assert found == [False] * 11 + [True]


def test_chinese_text_is_compared_by_characters() -> None:
    text = (
        "北京是中华人民共和国的首都，也是全国的政治、文化和国际交往中心。"
        "这座城市有三千多年的建城史，保存着许多古老的建筑。"
    )
    other = (
        "上海位于长江入海口，是中国最大的经济中心。"
        "港口的货物吞吐量多年居世界第一，高楼沿着黄浦江两岸排列，夜景十分有名。"
    )
    near = text.replace("许多", "不少").replace("，", ", ")
    assert answers([text, other, near], 0.75) == [False, False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n--- ***", []),
        ("One", ["one"]),
        ("One, two", ["one two"]),
        ("One two\nthree", ["one two three"]),
        ("one TWO — three “four”", ["one two three", "two three four"]),
        ("北京市中", ["北 京 市", "京 市 中"]),
        ("用 GPU 算", ["用 gpu 算"]),
        ("เมือง", ["เ ม ื", "ม ื อ", "ื อ ง"]),
        ("हिन्दी में लिखा पाठ", ["हिन्दी में लिखा", "में लिखा पाठ"]),
        ("ＡＢＣ ﬁx Straße", ["abc fix strasse"]),
    ],
)
def test_shingles_are_three_folded_words_or_characters_of_scripts_without_spaces(
    text: str, expected: list[str]
) -> None:
    assert shingles(text) == expected


def test_texts_without_words_are_kept() -> None:
    assert answers(["", "---", "***", "+ + +"], 0.5) == [False] * 4


def test_short_texts_are_near_only_if_their_words_are_equal() -> None:
    assert answers(["see also", "see below", "See also:"], 0.5) == [False, False, True]


def test_a_threshold_of_one_still_finds_equal_sets_of_shingles() -> None:
    words = prose(7)
    text = " ".join(words)
    assert answers([text, with_changes(words, [10]), text.upper()], 1) == [False, False, True]


def test_every_instance_gives_the_same_answers_whatever_the_hash_seed(tmp_path: Path) -> None:
    program = f"""
import hashlib, sys, tempfile
from pathlib import Path
import numpy as np
from m3build.chunking.near_duplicates import NearDuplicates
draw = np.random.default_rng(8)
words = [f"w{{number}}" for number in draw.integers(0, 50, 60)]
with NearDuplicates(0.7, Path({str(tmp_path)!r})) as near:
    for _ in range(60):
        text = " ".join(w if keep else "x" for w, keep in zip(words, draw.random(60) > 0.06))
        print(int(near.is_duplicate(hashlib.sha256(text.encode()).digest(), text)), end="")
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(printed) == 1
    assert set(printed.pop()) == {"0", "1"}


def test_another_order_may_keep_another_text_but_the_same_order_never_does() -> None:
    words = prose(9)
    corpus = [with_changes(words, range(at, 90, 30)) for at in range(30)]
    first = answers(corpus, 0.8)
    assert answers(corpus, 0.8) == first
    assert answers(reversed(corpus), 0.8)[0] is False


def test_the_file_is_there_while_open_and_gone_after_close(tmp_path: Path) -> None:
    near = NearDuplicates(0.9, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    near.close()
    near.close()
    assert not list(tmp_path.iterdir())


def test_what_the_cache_cannot_hold_goes_to_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_SCHEMA", module._SCHEMA.replace("BEGIN", "PRAGMA cache_size = 8; BEGIN"))
    corpus = [" ".join(prose(seed)) for seed in range(300)]
    with NearDuplicates(0.9, tmp_path) as near:
        assert not any(near.is_duplicate(key(text), text) for text in corpus)
        assert (tmp_path / FILE_NAME).stat().st_size > 300 * 128 * 4
        assert near.is_duplicate(key("copy"), corpus[0])
    assert not list(tmp_path.iterdir())


def test_the_file_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), NearDuplicates(0.9, tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_file_left_by_a_killed_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"half a page")
    with NearDuplicates(0.9, tmp_path) as near:
        assert near.is_duplicate(key("one two three"), "one two three") is False


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_threshold_that_is_no_similarity_is_refused(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        NearDuplicates(threshold, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UsageError, match=r"pip install 'm3build\[near-duplicates\]'"):
        NearDuplicates(0.9, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_datasketch_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = ModuleType("datasketch")
    old.MinHash = lambda num_perm, seed, hashfunc: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasketch", old)
    with pytest.raises(UsageError, match="datasketch 2 or newer"):
        NearDuplicates(0.9, tmp_path)


def test_a_directory_that_is_not_there_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=FILE_NAME):
        NearDuplicates(0.9, tmp_path / "missing")


def test_a_full_disk_is_a_resource_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_SCHEMA", module._SCHEMA + "PRAGMA max_page_count = 16;")
    with NearDuplicates(0.9, tmp_path) as near, pytest.raises(ResourceError, match="full"):
        any(near.is_duplicate(key(text), text) for text in (" ".join(prose(seed)) for seed in range(500)))
    assert not list(tmp_path.iterdir())


def test_importing_the_chunker_does_not_import_datasketch() -> None:
    program = "import sys, m3build.chunking; print('datasketch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "False"
