"""No cut goes through what a reader takes for one character."""

from __future__ import annotations

import pytest

from m3build.chunking.graphemes import last_boundary, splits_cluster


@pytest.mark.parametrize(
    "cluster",
    [
        "e\u0301",  # letter and combining accent
        "a\u0301\u0323",
        "\r\n",
        "👍🏽",  # skin tone
        "👩\u200d👩\u200d👧",  # joined family
        "❤\ufe0f",  # variation selector
        "🇩🇪",
        "🏴\U000e0067\U000e0062\U000e007f",  # flag of tags
        "각".encode().decode(),
        "\u1100\u1161\u11a8",  # the same in conjoining jamo
        "가\u11a8",
        "क्ष",  # letters joined by a virama
        "नि",  # vowel sign
        "กี่",  # Thai letter with vowel and tone mark
        "ｶﾞ",  # half-width kana with voicing mark
    ],
)
def test_a_cluster_is_never_split(cluster: str) -> None:
    text = f"a{cluster}b"
    assert not splits_cluster(text, 1)
    assert not splits_cluster(text, len(text) - 1)
    assert all(splits_cluster(text, at) for at in range(2, len(text) - 1))


@pytest.mark.parametrize("pair", ["ab", "a ", "语言", "かな", "가나", "😀😀", "\n\r", "e语", "กข"])
def test_two_characters_may_be_parted(pair: str) -> None:
    assert not splits_cluster(pair, 1)


def test_flags_in_a_row_are_parted_between_pairs_only() -> None:
    text = "🇩🇪🇫🇷🇯🇵"
    assert [splits_cluster(text, at) for at in range(1, 6)] == [True, False, True, False, True]


def test_the_last_boundary_steps_back_to_the_front_of_a_cluster() -> None:
    assert last_boundary("abe\u0301\u0323c", 0, 4) == 2
    assert last_boundary("abcd", 0, 3) == 3


def test_a_window_that_is_one_cluster_has_no_boundary() -> None:
    assert last_boundary("e" + "\u0301" * 50, 0, 30) == 0


@pytest.mark.parametrize("text", ["非常好‼\ufe0f真的很好" * 60, "你好。\ufe00" * 80, "กำ" * 200, "ຈຳ" * 200])
def test_no_chunk_begins_inside_a_cluster_behind_a_stop_or_before_an_am_vowel(text: str) -> None:
    from models import tiny_tokenizer

    from m3build.chunking import Chunker, ChunkOptions
    from m3build.chunking.graphemes import splits_cluster
    from m3build.records import Document

    chunks = Chunker(tiny_tokenizer(), ChunkOptions(64)).cut(Document("d", "s", 0, text))
    assert len(chunks) > 3
    assert not [chunk.start for chunk in chunks[1:] if splits_cluster(text, chunk.start)]
