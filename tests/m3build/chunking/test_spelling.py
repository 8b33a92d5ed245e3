"""Ends of tokens found from ids alone are those that the tokenizers library gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3build.chunking.encoder import Encoder
from m3build.chunking.spelling import Spelling

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
stripped = (
    st.text(
        st.sampled_from("abc the.,  \n\té语🇩\u0301<>s/0xE4") | st.characters(exclude_categories=["Cs"]),
        min_size=1,
    )
    .map(str.strip)
    .filter(bool)
)


def untrimmed(tokenizer: Any) -> Any:
    """The tokenizer without the post-processor that takes spaces off the offsets."""
    from tokenizers import Tokenizer, processors

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.Sequence([])
    copy.encode_special_tokens = True
    return copy


def ends_of(tokenizer: Any, texts: list[str], ids: list[list[int]]) -> list[Any]:
    flat = np.array([token for tokens in ids for token in tokens], np.int32)
    return Spelling(tokenizer).ends(texts, flat, np.array([len(tokens) for tokens in ids]))


def test_lossless_tokenizers_are_recognized(lossless: Any) -> None:
    assert Spelling(lossless).is_lossless


def test_a_tokenizer_that_changes_the_text_is_recognized(normalizing: Any) -> None:
    assert not Spelling(normalizing).is_lossless


@FEW
@given(texts=st.lists(stripped, min_size=1, max_size=5))
def test_ends_are_those_of_the_library_or_not_given(lossless: Any, texts: list[str]) -> None:
    reference = untrimmed(lossless)
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    found = ends_of(lossless, texts, [encoding.ids for encoding in encodings])
    for encoding, ends in zip(encodings, found, strict=True):
        assert ends is None or list(ends) == [end for _, end in encoding.offsets]


@pytest.mark.parametrize("text", ["plain words", "naïve café", "语言", "a  b\n\n   c", "🇩🇪 flag", "x"])
def test_ordinary_text_is_spelled(lossless: Any, text: str) -> None:
    ids = untrimmed(lossless).encode(text, add_special_tokens=False).ids
    assert ends_of(lossless, [text], [ids]) != [None]


def test_one_text_that_is_not_spelled_does_not_spoil_the_others(lossless: Any) -> None:
    right = untrimmed(lossless).encode("plain words", add_special_tokens=False).ids
    (good,) = ends_of(lossless, ["plain words"], [right])
    assert good is not None
    assert ends_of(lossless, ["plain words", "other words", "plain words"], [right, right, right]) == [
        good,
        None,
        good,
    ]
    assert ends_of(lossless, ["plain words", "plain", "words"], [right, [], right[1:]])[0] == good


@FEW
@given(texts=st.lists(stripped, min_size=1, max_size=5))
def test_an_encoding_does_not_depend_on_its_batch(tokenizer: Any, texts: list[str]) -> None:
    encoder = Encoder(tokenizer)
    assert encoder.encode(texts) == [encoder.encode([text])[0] for text in texts]


def test_bytes_of_one_character_share_an_end(byte_level: Any) -> None:
    (encoded,) = Encoder(byte_level).encode(["a🜲b"])
    assert list(encoded.ends) == [1, 2, 2, 2, 2, 3]


def test_ends_stay_with_the_original_where_the_tokenizer_changes_the_text(normalizing: Any) -> None:
    (encoded,) = Encoder(normalizing).encode(["ABC ﬁx ℌ"])
    assert encoded.ends[-1] == len("ABC ﬁx ℌ")
    assert all(0 <= end <= 8 for end in encoded.ends)
