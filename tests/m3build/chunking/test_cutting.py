"""The laws of cutting, for every kind of tokenizer: nothing lost, in order, within the limit, each chunk
encoded by itself, no memory of what came before."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3build.chunking import Chunker, ChunkOptions, cutting
from m3build.records import Chunk, Document, Heading
from m3build_formats.errors import MismatchError, UsageError

SLOW_START = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
LIMIT = 48  # room for one character of any script and normalization

WORDS = [
    "memory",
    "Keys.",
    "the",
    "values,",
    "(see",
    "below)",
    "3.11",
    "e.g.",
    "End!",
    "记忆是",
    "稀疏的。",
    "「次」",
    "ภาษาไทย",
    "👩‍👩‍👧",
    "naïve",
    "ﷺ",
    "café",
]
GAPS = [" ", " ", " ", "\n", "\n\n", "   ", "\n    ", "", "\t", "\u3000", "\r\n"]

any_text = st.one_of(
    st.text(max_size=400),
    st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), max_size=150).map(
        lambda pairs: "".join(word + gap for word, gap in pairs)
    ),
    st.tuples(
        st.sampled_from(["a", "ab", "语", ".", ")", "\u0301", "🇩🇪", "a b", "\n", "a\n\n\n"]),
        st.integers(0, 300),
    ).map(lambda pair: pair[0] * pair[1]),
)


@cache
def chunker_of(tokenizer_key: int, limit: int, title: bool) -> Chunker:
    return Chunker(_TOKENIZERS[tokenizer_key], ChunkOptions(limit, title))


_TOKENIZERS: dict[int, Any] = {}


def shared_chunker(tokenizer: Any, limit: int = LIMIT, title: bool = False) -> Chunker:
    """One chunker for each tokenizer and options: making one takes longer than cutting a page."""
    _TOKENIZERS[id(tokenizer)] = tokenizer
    return chunker_of(id(tokenizer), limit, title)


def document(text: str, **over: Any) -> Document:
    return Document("id", "source", 0, text, **over)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """An independent view of the tokenizer: ids of the text alone, special tokens taken as text."""
    tokenizer.encode_special_tokens = True
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = False
    return ids


def check_chunks(text: str, chunks: list[Chunk], tokenizer: Any, limit: int) -> None:
    covered = 0
    for chunk in chunks:
        assert chunk.start >= covered
        left_out = text[covered : chunk.start]
        assert not left_out.strip() or not plain_ids(tokenizer, left_out)
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip()
        assert chunk.text
        assert len(chunk.reference_text) <= 65_535
        covered = chunk.end
        assert 0 < len(chunk.token_ids) <= limit
        assert list(chunk.token_ids) == plain_ids(tokenizer, chunk.reference_text)
        assert len(chunk.token_ends) == len(chunk.token_ids)
        assert list(chunk.token_ends) == sorted(chunk.token_ends)
        assert chunk.token_ends[-1] <= len(chunk.reference_text)
    left_out = text[covered:]
    assert not left_out.strip() or not plain_ids(tokenizer, left_out)


@SLOW_START
@given(text=any_text)
def test_chunks_cover_the_document_in_order_within_the_limit_encoded_by_themselves(
    tokenizer: Any, text: str
) -> None:
    check_chunks(text, shared_chunker(tokenizer).cut(document(text)), tokenizer, LIMIT)


@SLOW_START
@given(text=any_text)
def test_every_character_that_is_not_white_space_is_covered_by_a_lossless_tokenizer(
    lossless: Any, text: str
) -> None:
    chunks = shared_chunker(lossless).cut(document(text))
    ink = sum(not character.isspace() for character in text)
    assert sum(not character.isspace() for chunk in chunks for character in chunk.text) == ink


@SLOW_START
@given(text=any_text, data=st.data())
def test_chunks_with_titles_obey_the_same_laws(byte_level: Any, text: str, data: st.DataObject) -> None:
    starts = sorted(data.draw(st.sets(st.integers(0, max(len(text) - 1, 0)), max_size=4)))
    headings = tuple(
        Heading(start, data.draw(st.integers(1, 3)), data.draw(st.sampled_from(WORDS) | st.text(max_size=60)))
        for start in starts
    )
    chunks = shared_chunker(byte_level, title=True).cut(
        document(text, title=data.draw(st.text(max_size=80)), headings=headings)
    )
    check_chunks(text, chunks, byte_level, LIMIT)


@settings(SLOW_START, max_examples=15)
@given(texts=st.lists(any_text, max_size=8), seed=st.integers(0, 1000))
def test_a_documents_chunks_do_not_depend_on_its_neighbours(
    tokenizer: Any, texts: list[str], seed: int
) -> None:
    documents = [document(text) for text in texts]
    chunker = shared_chunker(tokenizer)
    fresh = Chunker(tokenizer, ChunkOptions(LIMIT))
    alone = {text: fresh.cut(document(text)) for text in texts}
    random.Random(seed).shuffle(documents)
    assert [(one.text, chunks) for one, chunks in chunker.cut_many(documents)] == [
        (one.text, alone[one.text]) for one in documents
    ]


def long_text(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(GAPS) for _ in range(words))


def test_chunks_do_not_depend_on_batches_and_groups(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [document(long_text(seed, 40 * seed * seed)) for seed in range(6)]
    chunker = Chunker(tokenizer, ChunkOptions(LIMIT))
    expected = [chunks for _, chunks in chunker.cut_many(documents)]
    for batch, held in ((1, 1), (3, 5000), (1000, 1 << 30)):
        monkeypatch.setattr(cutting, "_BATCH", batch)
        monkeypatch.setattr(cutting, "_GROUP_CHARACTERS", held)
        assert [chunks for _, chunks in chunker.cut_many(documents)] == expected


@pytest.mark.parametrize("text", ["", " ", "\n\n\t\u3000 ", "\u2028\x85"])
def test_a_blank_document_has_no_chunks(byte_level: Any, text: str) -> None:
    assert Chunker(byte_level).cut(document(text)) == []


def test_a_document_that_fits_is_one_chunk_without_the_white_space_around_it(byte_level: Any) -> None:
    (chunk,) = Chunker(byte_level).cut(document("\n  The fox sleeps.\n\nThe dog does not.  \n"))
    assert (chunk.text, chunk.start, chunk.end) == ("The fox sleeps.\n\nThe dog does not.", 3, 37)


def test_documents_are_read_as_they_are_needed(byte_level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "_GROUP_CHARACTERS", 1000)
    taken = []

    def documents() -> Any:
        for number in range(1000):
            taken.append(number)
            yield document("The fox sleeps in the warm sun. " * 10)

    results = Chunker(byte_level).cut_many(documents())
    next(results)
    assert len(taken) < 20


class Counting:
    """Counts the characters that a chunker encodes."""

    def __init__(self, chunker: Chunker) -> None:
        self.encoder: Any = chunker._encoder
        self.characters = self.longest = 0
        chunker._encoder = self  # type: ignore[assignment]

    def encode(self, texts: list[str]) -> Any:
        self.characters += sum(map(len, texts))
        self.longest = max(self.longest, *map(len, texts))
        return self.encoder.encode(texts)


@pytest.mark.parametrize(
    ("piece", "bound"),
    [
        ("word ", 1.2),
        ("x", 1.2),
        ("好", 1.2),
        ("A sentence of six words stands here. ", 1.2),
        ("\u0301", 1.2),
        (".", 1.2),
        ("a\n", 1.2),
    ],
)
def test_a_long_document_is_encoded_about_once_whatever_it_holds(
    byte_level: Any, piece: str, bound: float
) -> None:
    text = piece * (300_000 // len(piece))
    chunker = Chunker(byte_level)
    counting = Counting(chunker)
    chunks = chunker.cut(document(text))
    assert counting.characters < bound * len(text)
    assert counting.longest < 10_000
    assert sum(len(chunk.text) for chunk in chunks) >= len(text.replace(" ", "").replace("\n", ""))


def test_white_space_is_not_encoded(byte_level: Any) -> None:
    chunker = Chunker(byte_level)
    counting = Counting(chunker)
    first, second = chunker.cut(document("start" + " " * 500_000 + "end"))
    assert (first.text, second.text) == ("start", "end")
    assert counting.characters < 1000


def test_a_chunk_is_cut_in_white_space_longer_than_a_row_can_hold() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    chunks = Chunker(tokenizer).cut(document("a b" + " " * 70_000 + "b a"))
    assert [chunk.text for chunk in chunks] == ["a b", "b a"]


def test_a_text_without_tokens_gives_no_chunk() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("z", "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Chunker(tokenizer).cut(document("zzz zz")) == []
    assert [chunk.text for chunk in Chunker(tokenizer).cut(document("zz a zz"))] == ["zz a zz"]


def test_special_tokens_that_a_text_spells_out_are_plain_text(byte_level: Any) -> None:
    special = byte_level.token_to_id("<|endoftext|>")
    text = "before <|endoftext|> after</s>"
    assert special in byte_level.encode(text).ids
    (chunk,) = Chunker(byte_level).cut(document(text))
    assert special not in chunk.token_ids
    assert byte_level.token_to_id("</s>") not in chunk.token_ids
    assert byte_level.decode(list(chunk.token_ids), skip_special_tokens=False) == text


def test_truncation_and_padding_of_the_caller_neither_matter_nor_change(byte_level: Any) -> None:
    from tokenizers import Tokenizer

    text = "The quick brown fox jumps over the lazy dog. " * 20
    expected = Chunker(byte_level).cut(document(text))
    own = Tokenizer.from_str(byte_level.to_str())
    own.enable_truncation(max_length=4)
    own.enable_padding(length=200, pad_id=0, pad_token="<s>")
    assert Chunker(own).cut(document(text)) == expected
    assert own.truncation["max_length"] == 4
    assert own.padding["length"] == 200
    assert not own.encode_special_tokens


def test_dropout_is_switched_off(byte_level: Any) -> None:
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(byte_level.to_str())
    own.model.dropout = 0.9
    text = "The quick brown fox jumps over the lazy dog. " * 20
    assert Chunker(own).cut(document(text)) == Chunker(byte_level).cut(document(text))


def test_a_transformers_tokenizer_gives_the_same_chunks_without_warnings(
    byte_level: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=byte_level, bos_token="<s>", model_max_length=16)
    text = "The quick brown fox jumps over the lazy dog. " * 20
    assert Chunker(wrapped).cut(document(text)) == Chunker(byte_level).cut(document(text))
    assert not caplog.records


def test_a_slow_tokenizer_is_refused_by_name() -> None:
    class SlowTokenizer:
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(MismatchError, match="SlowTokenizer"):
        Chunker(SlowTokenizer())


@pytest.mark.parametrize("tokens", [-1, 0, 15, 256, 100_000])
def test_a_limit_out_of_range_is_refused(tokens: int) -> None:
    with pytest.raises(UsageError, match="from 16 to 255"):
        ChunkOptions(reference_tokens=tokens)


def test_a_character_that_alone_takes_too_many_tokens_is_an_error_that_names_it(normalizing: Any) -> None:
    with pytest.raises(MismatchError, match=r"U\+FDFA"):
        Chunker(normalizing, ChunkOptions(16)).cut(document("\ufdfa"))


def test_chunks_of_prose_are_well_filled(byte_level: Any) -> None:
    sentences = [
        "The fox jumps over the dog.",
        "It sleeps for a while in the sun, and then it goes on.",
        "Nothing more.",
        "Keys and values are sparse.",
    ]
    draw = random.Random(3)
    text = " ".join(draw.choice(sentences) for _ in range(2000))
    *chunks, _ = Chunker(byte_level).cut(document(text))
    assert sum(len(chunk.token_ids) for chunk in chunks) / len(chunks) > 0.8 * 128
    assert all(chunk.text.endswith(".") for chunk in chunks)


def test_chinese_chunks_are_well_filled(byte_level: Any) -> None:
    text = "记忆是稀疏的注意力键和值，参考文本很短。" * 200
    *chunks, _ = Chunker(byte_level).cut(document(text))
    assert sum(len(chunk.token_ids) for chunk in chunks) / len(chunks) > 0.6 * 128
    assert all(chunk.text.endswith("。") for chunk in chunks)


def test_what_is_left_over_is_no_scrap(byte_level: Any) -> None:
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps for a while in the warm sun. "
    for count in range(2, 30):
        chunks = Chunker(byte_level).cut(document(text * count))
        assert len(chunks[-1].token_ids) > 16


def test_the_description_is_json_of_what_shapes_chunks(byte_level: Any) -> None:
    assert Chunker(byte_level, ChunkOptions(64, title=True)).describe() == {
        "reference_tokens": 64,
        "rule": 1,
        "title": True,
    }
