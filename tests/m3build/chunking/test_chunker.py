"""What chunks promise at any limit, titled or not, by tokenizers of every family; and how full they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TRAINING_TEXT, tiny_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers import models as token_models

from m3build.chunking import Chunker, ChunkOptions
from m3build.chunking.encoder import Encoded, Encoder
from m3build.records import Chunk, Document, Heading
from m3build_formats.errors import MismatchError

SPECIALS = ["<unk>", "<s>", "</s>"]
TOKENIZERS = ("byte-level", "byte-level NFC", "byte fallback", "unigram", "wordpiece")
CLUSTERS = [
    "e\u0301",
    "a\u0308\u0323",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🇩🇪",
    "1\ufe0f\u20e3",
    "ก็",
    "กิ",
    "क्षि",
    "\u1112\u1161\u11ab",
    "한",
    "ｶ\uff9e",
    "中",
    "。",
    "「",
    "」",
    "か",
    "x",
    "7",
]
PIECES = [
    *CLUSTERS,
    *("the quick ", "memories", "3.11", "e.g. ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\u00a0"),
    *("\u2028", "\x1c", "\x00", "\x7f", "\u200b", "\ufeff", "\u2581", "<0x41>", "İ", "ß", "ﬁ", "㎏", "ͅ"),
    *("สวัสดีครับ", "记忆是稀疏的。", "正しく", ". ", "! ", "aaaaaaaaaaaaaaaaaaaaaaaa", "-" * 40, " " * 30),
]

anything = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=12)),
    max_size=60,
).map("".join)
repeated = st.builds(lambda text, times: text * times, anything, st.sampled_from([1, 1, 2, 7]))
limits = st.sampled_from([16, 23, 64, 128, 255])


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """Tokenizers that spell text as it is, that compose it first, that mark spaces, and that rewrite it."""
    options: dict[str, Any] = {"vocab_size": 320, "special_tokens": SPECIALS, "show_progress": False}
    if kind.startswith("byte-level"):
        made: Tokenizer = tiny_tokenizer().backend_tokenizer
        if kind.endswith("NFC"):
            made.normalizer = normalizers.NFC()
        return made
    if kind == "wordpiece":
        made = Tokenizer(token_models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFD(), normalizers.StripAccents()]
        )
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(TRAINING_TEXT, trainers.WordPieceTrainer(**options))
        return made
    if kind == "unigram":
        made = Tokenizer(token_models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.train_from_iterator(TRAINING_TEXT, trainers.UnigramTrainer(unk_token="<unk>", **options))
        return made
    made = Tokenizer(token_models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.train_from_iterator(TRAINING_TEXT[:2], trainers.BpeTrainer(**options))
    described = json.loads(made.to_str())
    vocabulary = described["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    return Tokenizer.from_str(json.dumps(described))


@cache
def chunker_of(kind: str, limit: int, title: bool = False) -> Chunker:
    return Chunker(tokenizer_of(kind), ChunkOptions(limit, title))


def document(text: str, title: str = "") -> Document:
    return Document(id="d", source="s", position=0, text=text, title=title)


def prose(seed: int, paragraphs: int) -> str:
    """Paragraphs of one to three sentences of made-up words."""
    random = np.random.default_rng(seed)
    syllables = ["ba", "ler", "mo", "tin", "sa", "ri", "quo", "en", "dus", "va"]

    def sentence() -> str:
        words = [
            "".join(random.choice(syllables, random.integers(1, 4))) for _ in range(random.integers(3, 9))
        ]
        return " ".join(words).capitalize() + "."

    return "\n\n".join(" ".join(sentence() for _ in range(random.integers(1, 4))) for _ in range(paragraphs))


def count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def check_encoding(tokenizer: Tokenizer, chunk: Chunk, limit: int) -> None:
    encoding = tokenizer.encode(chunk.reference_text, add_special_tokens=False)
    assert list(chunk.token_ids) == encoding.ids
    assert 1 <= len(chunk.token_ids) <= limit
    # A token without characters of its own may report an end before that of the token before it.
    assert list(chunk.token_ends) == list(itertools.accumulate((end for _, end in encoding.offsets), max))


def stretches_left_out(text: str, chunks: Sequence[Chunk]) -> list[str]:
    """Text outside all chunks, white space aside; asserts that the spans are sane and in order."""
    gaps = []
    behind = 0
    for chunk in chunks:
        assert behind <= chunk.start < chunk.end <= len(text)
        assert chunk.text == text[chunk.start : chunk.end]
        assert not chunk.text[0].isspace()
        assert not chunk.text[-1].isspace()
        gaps.append(text[behind : chunk.start])
        behind = chunk.end
    return [gap for gap in [*gaps, text[behind:]] if gap.strip()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=repeated, limit=limits)
def test_ids_and_ends_are_the_tokenizers_own_for_each_chunk_by_itself_at_any_limit(
    kind: str, text: str, limit: int
) -> None:
    tokenizer = tokenizer_of(kind)
    try:
        chunks = chunker_of(kind, limit).cut(document(text))
    except MismatchError:
        # The one excuse: a single character is more than a chunk may hold.
        assert max(count(tokenizer, character) for character in text) > limit
        return
    for chunk in chunks:
        check_encoding(tokenizer, chunk, limit)
    # Only text of which the tokenizer makes nothing may be left out: bare accents, to one that strips them.
    for gap in stretches_left_out(text, chunks):
        assert kind == "wordpiece"
        assert count(tokenizer, gap) == 0


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), limit=limits)
def test_titles_stand_inside_the_limit_and_spans_still_refer_to_the_document(
    kind: str, data: st.DataObject, limit: int
) -> None:
    tokenizer = tokenizer_of(kind)
    text = data.draw(repeated)
    starts = data.draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=5, unique=True).map(sorted))
    headings = tuple(Heading(start, data.draw(st.integers(1, 4)), data.draw(anything)) for start in starts)
    made = Document("d", "s", 0, text, title=data.draw(anything), headings=headings)
    try:
        chunks = chunker_of(kind, limit, True).cut(made)
    except MismatchError:
        assert (
            limit < 64
        )  # a title takes a third at most, so only an odd character in a small reference is refused
        return
    for chunk in chunks:
        check_encoding(tokenizer, chunk, limit)
        assert "\n" not in chunk.title
    assert not [gap for gap in stretches_left_out(text, chunks) if count(tokenizer, gap)]


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.sampled_from([*CLUSTERS, " ", "\n"]), max_size=80),
    limit=st.sampled_from([40, 64, 128]),
)
def test_no_chunk_begins_or_ends_inside_a_grapheme_cluster(parts: list[str], limit: int) -> None:
    text = "".join(parts)
    borders = set(itertools.accumulate((len(part) for part in parts), initial=0))
    chunks = chunker_of("byte-level", limit).cut(document(text))
    assert {chunk.start for chunk in chunks} | {chunk.end for chunk in chunks} <= borders


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("limit", [64, 128])
def test_neighbours_are_joined_until_they_fill_most_of_a_reference(kind: str, limit: int) -> None:
    # How much fits is forecast: two thirds of the limit may be taken for all of it, but never less.
    tokenizer = tokenizer_of(kind)
    for seed in range(2):
        text = prose(seed, 40)
        chunks = chunker_of(kind, limit).cut(document(text))
        for first, second in itertools.pairwise(chunks):
            assert count(tokenizer, text[first.start : second.end]) > limit * 2 / 3


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_paragraphs_that_fit_together_with_room_to_spare_are_one_chunk(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for paragraphs in range(1, 20):
        text = prose(paragraphs, paragraphs)
        if count(tokenizer, text) <= 128 * 2 / 3:
            assert [(chunk.start, chunk.end) for chunk in chunker_of(kind, 128).cut(document(text))] == [
                (0, len(text))
            ]


def test_paragraphs_are_not_cut_where_two_or_more_fit_in_a_reference() -> None:
    text = "\n\n".join("Some words in a paragraph of one line." for _ in range(60))
    chunks = chunker_of("byte-level", 128).cut(document(text))
    assert all(chunk.text.count("Some") >= 2 for chunk in chunks)
    assert all(chunk.text.startswith("Some") and chunk.text.endswith("line.") for chunk in chunks)


@pytest.mark.parametrize("kind", TOKENIZERS[1:])
@pytest.mark.parametrize("unit", ["abcdefgh", "中", "👩\u200d", "\u0301", "-", "。", "ก", ".)"])
def test_text_without_white_space_is_cut_in_linear_work_by_any_tokenizer(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 20_000
    text = (unit * length)[:length]
    handed = 0
    encode = Encoder.encode

    def counting(self: Encoder, texts: Sequence[str]) -> list[Encoded]:
        nonlocal handed
        handed += sum(map(len, texts))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", counting)
    chunks = chunker_of(kind, 128).cut(document(text))
    assert handed <= 3 * length
    assert not [gap for gap in stretches_left_out(text, chunks) if count(tokenizer_of(kind), gap)]


def test_a_title_too_long_by_itself_is_cut_short_with_an_ellipsis() -> None:
    chunks = chunker_of("byte-level", 128, True).cut(document(prose(5, 30), title="endless " * 5000))
    (title,) = {chunk.title for chunk in chunks}
    assert title.startswith("endless endless")
    assert title.endswith("…")
    assert 128 // 6 < count(tokenizer_of("byte-level"), title) <= 128 // 3


def test_special_tokens_spelled_out_in_a_title_are_plain_text() -> None:
    tokenizer = tokenizer_of("byte-level")
    specials = {tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")}
    (chunk,) = chunker_of("byte-level", 128, True).cut(document("Say </s> here.", title="On <s>"))
    assert not specials & set(chunk.token_ids)
    assert tokenizer.decode(list(chunk.token_ids)) == "On <s>\nSay </s> here."


def test_a_tokenizer_of_transformers_written_in_python_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(MismatchError, match="slow"):
        Chunker(ByT5Tokenizer())
