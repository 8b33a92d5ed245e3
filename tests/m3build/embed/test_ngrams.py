"""Hashed character n-grams against a slow transcription of their rule that shares no code with them."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.embed.ngrams import (
    BATCH_TEXTS,
    BUCKETS,
    IDEOGRAPHS,
    SEPARATORS,
    UNSPACED,
    NgramCounts,
    batches,
    count_ngrams,
    fold,
)

MIXED = st.text(
    st.sampled_from("abcdefgÄß ,.\n\0_12 中文字記憶ひらカタ한국 ไทยກາမြန් éΣς𐐀𠀀") | st.characters(),
    max_size=40,
)


def kind(character: str) -> str:
    for name, ranges in (("separator", SEPARATORS), ("short", IDEOGRAPHS), ("medium", UNSPACED)):
        if any(start <= ord(character) < end for start, end in ranges):
            return name
    return "word"


def runs(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for character in text:
        if found and found[-1][0] == kind(character):
            found[-1] = (found[-1][0], found[-1][1] + character)
        else:
            found.append((kind(character), character))
    return found


def bucket(ngram: str) -> int:
    value = 0
    for character in ngram:
        value = (value * 0x01000193 + ord(character)) % 2**32
    value = (value + len(ngram)) % 2**32
    value ^= value >> 16
    value = value * 0x85EBCA6B % 2**32
    value ^= value >> 13
    value = value * 0xC2B2AE35 % 2**32
    value ^= value >> 16
    return value >> 12


def slow_counts(text: str) -> Counter[int]:
    counted: Counter[int] = Counter()
    for name, run in runs(unicodedata.normalize("NFKC", text).casefold()):
        lengths = {"separator": (), "word": (3, 4, 5), "short": (1, 2), "medium": (1, 2, 3, 4)}[name]
        padded = f" {run} " if name == "word" else run
        for length in lengths:
            counted.update(bucket(padded[i : i + length]) for i in range(len(padded) - length + 1))
    return counted


def per_text(counted: NgramCounts, texts: int) -> list[Counter[int]]:
    found: list[Counter[int]] = [Counter() for _ in range(texts)]
    for text, bucket_, count in zip(
        counted.texts.tolist(), counted.buckets.tolist(), counted.counts.tolist(), strict=True
    ):
        assert bucket_ not in found[text]
        found[text][bucket_] = count
    return found


@given(st.lists(MIXED, max_size=6))
def test_the_counts_are_those_of_the_written_rule(texts: list[str]) -> None:
    counted = count_ngrams([fold(text) for text in texts])
    expected = [slow_counts(text) for text in texts]
    assert per_text(counted, len(texts)) == expected
    assert counted.lengths.tolist() == [some.total() for some in expected]


@given(st.lists(MIXED, max_size=8))
def test_pairs_come_by_text_then_by_bucket(texts: list[str]) -> None:
    counted = count_ngrams([fold(text) for text in texts])
    pairs = list(zip(counted.texts.tolist(), counted.buckets.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert all(0 <= bucket_ < BUCKETS for _, bucket_ in pairs)


@given(st.lists(MIXED, max_size=30))
def test_batches_keep_every_text_in_order(texts: list[str]) -> None:
    assert [text for group in batches(texts) for text in group] == [fold(text) for text in texts]


def test_a_batch_holds_no_more_texts_than_its_keys_can_number() -> None:
    groups = list(batches(["a"] * (BATCH_TEXTS + 1)))
    assert [len(group) for group in groups] == [BATCH_TEXTS, 1]
    with pytest.raises(ValueError, match="at most"):
        count_ngrams(["a"] * (BATCH_TEXTS + 1))


def test_an_overlong_text_is_a_batch_of_its_own() -> None:
    groups = list(batches(["a b", "word " * 100_000, "c d"]))
    assert [len(group) for group in groups] == [1, 1, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＦＵＬＬ width", "full WIDTH"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("é", "e\u0301"),
        ("ΣΑΣ", "σας"),
    ],
)
def test_spellings_of_one_word_are_one_word(one: str, other: str) -> None:
    assert slow_counts(one) == slow_counts(other)
    assert per_text(count_ngrams([fold(one), fold(other)]), 2)[0] == slow_counts(other)


def test_no_ngram_crosses_a_word_border_but_han_ngrams_cross_none() -> None:
    together, apart = per_text(count_ngrams([fold("使用linux系统"), fold("使用 linux 系统")]), 2)
    assert together == apart
    assert bucket("用l") not in together
    assert bucket(" li") in together


def test_lone_surrogates_and_nul_are_characters_like_others() -> None:
    counted = count_ngrams([fold("ab\ud800cd\0ef"), fold("x")])
    assert per_text(counted, 2)[0] == slow_counts("ab cd ef")


def test_no_text_and_blank_texts_have_no_ngrams() -> None:
    assert len(count_ngrams([]).buckets) == 0
    counted = count_ngrams([fold(" \n"), "", fold(",;")])
    assert counted.lengths.tolist() == [0, 0, 0]
