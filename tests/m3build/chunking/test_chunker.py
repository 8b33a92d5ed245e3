"""What every chunk promises, whatever the text and the tokenizer: tokens, spans, titles, and independence of all else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TRAINING_TEXT, tiny_tokenizer
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as token_models

from m3build.chunking import Chunker, ChunkOptions
from m3build.chunking.encoder import Encoded, Encoder
from m3build.records import Chunk, Document, Heading
from m3build_formats.errors import MismatchError, UsageError

SPECIALS = ["<unk>", "<s>", "</s>"]
TOKENIZERS = ("byte-level", "byte-level NFC", "sentencepiece", "wordpiece", "wordpiece NFKC", "unigram")
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
    """One tokenizer of each family that decoder-only models come with, and two that are not lossless."""
    options: dict[str, Any] = {"vocab_size": 320, "special_tokens": SPECIALS, "show_progress": False}
    if kind.startswith("byte-level"):
        made: Tokenizer = tiny_tokenizer().backend_tokenizer
        if kind.endswith("NFC"):
            made.normalizer = normalizers.NFC()
        return made
    if kind == "sentencepiece":
        made = Tokenizer(token_models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        made.train_from_iterator(TRAINING_TEXT, trainers.BpeTrainer(**options))
        settings_ = json.loads(made.to_str())
        vocabulary = settings_["model"]["vocab"]
        for byte in range(256):
            vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
        made = Tokenizer.from_str(json.dumps(settings_))
        made.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        return made
    if kind.startswith("wordpiece"):
        made = Tokenizer(token_models.WordPiece(unk_token="<unk>"))
        parts = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFD(), normalizers.StripAccents()]
        made.normalizer = (
            normalizers.Sequence(parts)
            if kind.endswith("NFKC")
            else normalizers.BertNormalizer(lowercase=True)
        )
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(TRAINING_TEXT, trainers.WordPieceTrainer(**options))
        return made
    made = Tokenizer(token_models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(TRAINING_TEXT, trainers.UnigramTrainer(unk_token="<unk>", **options))
    return made


@cache
def chunker_of(kind: str, limit: int, title: bool = False) -> Chunker:
    return Chunker(tokenizer_of(kind), ChunkOptions(limit, title))


def document(
    text: str, name: str = "d", title: str = "", headings: Sequence[tuple[str, int]] = ()
) -> Document:
    """A document; headings are given by the words that are their line in the text, and their level."""
    outline = tuple(Heading(text.index(words), level, words) for words, level in headings)
    return Document(id=name, source="s", position=0, text=text, title=title, headings=outline)


def prose(seed: int, paragraphs: int) -> str:
    """Paragraphs of one to three sentences of made-up words."""
    random = np.random.default_rng(seed)
    syllables = ["ba", "ler", "mo", "tin", "sa", "ri", "quo", "en", "dus", "va"]

    def sentence() -> str:
        words = [
            "".join(random.choice(syllables, random.integers(1, 4))) for _ in range(random.integers(3, 9))
        ]
        return " ".join(words).capitalize() + "."

    return "\n\n".join(
        " ".join(sentence() for _ in range(random.integers(1, 4))) for _ in range(paragraphs)
    )


def count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def check_encoding(tokenizer: Tokenizer, chunk: Chunk, limit: int) -> None:
    encoding = tokenizer.encode(chunk.reference_text, add_special_tokens=False)
    assert chunk.token_ids == tuple(encoding.ids)
    assert 1 <= len(chunk.token_ids) <= limit
    # A token without characters of its own may report an end before that of the token before it.
    assert chunk.token_ends == tuple(itertools.accumulate((end for _, end in encoding.offsets), max))


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
@settings(max_examples=60, deadline=None)
@given(text=repeated, limit=limits)
def test_each_chunk_is_encoded_by_itself_within_the_limit_and_no_character_is_lost(
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
    # The one exception to full cover: text of which the tokenizer makes nothing at all (control characters to BERT's).
    for gap in stretches_left_out(text, chunks):
        assert kind.startswith("wordpiece")
        assert count(tokenizer, gap) == 0


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None)
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
        assert limit < 64  # a title takes a third at most, so only an odd character in a small reference is refused
        return
    for chunk in chunks:
        check_encoding(tokenizer, chunk, limit)
        assert "\n" not in chunk.title
    assert not [gap for gap in stretches_left_out(text, chunks) if count(tokenizer, gap)]


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.sampled_from([*CLUSTERS, " ", "\n"]), max_size=80),
    limit=st.sampled_from([40, 64, 128]),
)
def test_no_chunk_begins_or_ends_inside_a_grapheme_cluster(parts: list[str], limit: int) -> None:
    text = "".join(parts)
    borders = set(itertools.accumulate((len(part) for part in parts), initial=0))
    chunks = chunker_of("byte-level", limit).cut(document(text))
    assert {chunk.start for chunk in chunks} | {chunk.end for chunk in chunks} <= borders


def test_a_cluster_larger_than_the_limit_is_still_cut_between_code_points() -> None:
    text = "a" + "\u0301" * 300
    chunks = chunker_of("byte-level", 16).cut(document(text))
    assert "".join(chunk.text for chunk in chunks) == text
    assert max(len(chunk.token_ids) for chunk in chunks) <= 16


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(anything, max_size=12), data=st.data())
def test_the_chunks_of_a_document_do_not_depend_on_its_company(texts: list[str], data: st.DataObject) -> None:
    documents = [document(text, str(at), title="A title") for at, text in enumerate(texts)]
    for kind in ("byte-level", "sentencepiece", "wordpiece"):
        chunker = chunker_of(kind, 255, True)
        alone = {made.id: chunker.cut(made) for made in documents}
        for group in (documents, data.draw(st.permutations(documents))):
            assert [(made.id, chunks) for made, chunks in chunker.cut_many(group)] == [
                (made.id, alone[made.id]) for made in group
            ]


def test_a_chunker_that_has_seen_other_text_cuts_as_a_new_one_does() -> None:
    odd = document("中文。👩\u200d👩\u200d👧 <0x41> \u2581" * 300)
    plain = document(prose(1, 200))
    fresh = Chunker(tokenizer_of("sentencepiece"))
    expected = fresh.cut(plain)
    used = Chunker(tokenizer_of("sentencepiece"))
    for _ in range(2):
        assert dict(enumerate(chunks for _, chunks in used.cut_many([odd, plain, odd])))[1] == expected


def test_many_documents_come_back_in_order_with_the_document_itself() -> None:
    documents = [document(prose(seed, 1), str(seed)) for seed in range(300)]
    chunker = chunker_of("byte-level", 64)
    results = list(chunker.cut_many(documents))
    assert [made for made, _ in results] == documents
    assert [chunks for _, chunks in results] == [chunker.cut(made) for made in documents]


@pytest.mark.parametrize(("text", "most"), [("Short.", 256), (prose(2, 3000), 8)])
def test_an_endless_stream_is_read_ahead_by_a_bounded_number_of_documents(text: str, most: int) -> None:
    taken = 0

    def endless() -> Iterator[Document]:
        nonlocal taken
        while True:
            taken += 1
            yield document(text)

    next(iter(chunker_of("byte-level", 128).cut_many(endless())))
    assert taken <= most


def test_no_documents_give_no_results() -> None:
    assert list(chunker_of("byte-level", 128).cut_many([])) == []


@pytest.mark.parametrize("text", ["", " ", "\n\n\t \u3000\u00a0\u2028\x1c", " " * 50_000])
@pytest.mark.parametrize("title", [False, True])
def test_a_blank_document_has_no_chunks(text: str, title: bool) -> None:
    assert chunker_of("byte-level", 128, title).cut(document(text, title="A title")) == []


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("limit", [64, 128])
def test_neighbours_are_joined_until_they_fill_most_of_a_reference(kind: str, limit: int) -> None:
    # How much fits is forecast, and a piece of two thirds of the limit may be taken for one that fills it; never for less.
    tokenizer = tokenizer_of(kind)
    for seed in range(3):
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


def test_a_title_and_the_headings_above_go_before_the_text() -> None:
    one, two = (prose(seed, 4) for seed in (3, 4))
    text = f"Section\n\n{one}\n\nDetails\n\n{two}\n\nOther\n\n{one}"
    made = document(text, title="Title", headings=[("Section", 1), ("Details", 2), ("Other", 1)])
    chunks = chunker_of("byte-level", 96, True).cut(made)
    for chunk in chunks:
        assert chunk.reference_text == f"{chunk.title}\n{chunk.text}"
        assert not chunk.title.endswith(chunk.text.split("\n")[0])  # a heading in the chunk is not told twice
    details, other = text.index("Details"), text.index("Other")
    titles = {chunk.title: chunk.start for chunk in chunks}
    assert "Title > Section" in titles
    assert details < titles["Title > Section > Details"] < other < titles["Title > Other"]
    assert all(chunk.title == "" for chunk in chunker_of("byte-level", 96).cut(made))


def test_a_title_takes_a_third_of_the_limit_at_most_and_loses_the_middle_first() -> None:
    tokenizer = tokenizer_of("byte-level")
    levels = ["Alpha part", "Beta part which is long " * 3, "Gamma part"]
    text = "\n\n".join([*levels, prose(5, 30)])
    made = document(text, title="Book", headings=list(zip(levels, (1, 2, 3), strict=True)))
    last = chunker_of("byte-level", 128, True).cut(made)[-1]
    assert count(tokenizer, last.title) <= 128 // 3
    assert last.title.startswith("Book")
    assert last.title.endswith("Gamma part")
    long = document(prose(5, 30), title="endless " * 5000)
    for chunk in chunker_of("byte-level", 128, True).cut(long):
        assert chunk.title.startswith("endless")
        assert chunk.title.endswith("…")
        assert count(tokenizer, chunk.title) <= 128 // 3


def test_special_tokens_spelled_out_are_plain_text() -> None:
    tokenizer = tokenizer_of("byte-level")
    specials = {tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")}
    text = "Say <s> and </s> here."
    assert specials & set(tokenizer.encode(text).ids)
    (chunk,) = chunker_of("byte-level", 128, True).cut(document(text, title="On <s>"))
    assert not specials & set(chunk.token_ids)
    assert tokenizer.decode(list(chunk.token_ids)) == "On <s>\nSay <s> and </s> here."


def test_the_callers_tokenizer_keeps_its_settings_and_they_shape_no_chunk() -> None:
    tokenizer: Tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=200)
    before = tokenizer.to_str()
    made = document(prose(6, 10))
    chunks = Chunker(tokenizer).cut(made)
    assert tokenizer.to_str() == before
    assert not tokenizer.encode_special_tokens
    assert chunks == chunker_of("byte-level", 128).cut(made)


def test_dropout_is_off() -> None:
    tokenizer: Tokenizer = tiny_tokenizer().backend_tokenizer
    settings_ = json.loads(tokenizer.to_str())
    settings_["model"]["dropout"] = 0.5
    made = document(prose(7, 10))
    noisy = Chunker(Tokenizer.from_str(json.dumps(settings_)))
    assert noisy.cut(made) == noisy.cut(made) == chunker_of("byte-level", 128).cut(made)


def test_a_transformers_tokenizer_and_its_backend_cut_alike() -> None:
    tokenizer = tiny_tokenizer()
    made = document(prose(8, 10))
    assert Chunker(tokenizer).cut(made) == Chunker(tokenizer.backend_tokenizer).cut(made)


def test_a_slow_tokenizer_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(MismatchError, match="slow"):
        Chunker(ByT5Tokenizer())


@pytest.mark.parametrize("tokens", [-1, 0, 15, 256, 10**9])
def test_a_limit_below_16_or_over_255_tokens_is_refused(tokens: int) -> None:
    with pytest.raises(UsageError, match="16"):
        ChunkOptions(tokens)


@pytest.mark.parametrize("tokens", [16, 255])
def test_the_smallest_and_the_largest_limit_are_taken(tokens: int) -> None:
    chunks = chunker_of("byte-level", tokens).cut(document(prose(9, 20)))
    assert tokens / 2 < max(len(chunk.token_ids) for chunk in chunks) <= tokens


def test_what_shapes_the_chunks_is_told_as_json() -> None:
    told = [
        json.dumps(Chunker(tokenizer_of("byte-level"), options).describe(), sort_keys=True)
        for options in (ChunkOptions(), ChunkOptions(64), ChunkOptions(title=True))
    ]
    assert len(set(told)) == 3


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("unit", ["abcdefgh", "x", "中", "👩\u200d", "\u0301", "-", "。", "ก", ".)", ";"])
def test_text_without_white_space_is_cut_in_linear_work(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 200_000 if kind == "byte-level" else 20_000
    text = (unit * length)[:length]
    chunker = chunker_of(kind, 128)
    handed = 0
    encode = Encoder.encode

    def counting(self: Encoder, texts: Sequence[str]) -> list[Encoded]:
        nonlocal handed
        handed += sum(map(len, texts))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", counting)
    chunks = chunker.cut(document(text))
    assert handed <= 4 * length
    assert not [gap for gap in stretches_left_out(text, chunks) if count(tokenizer_of(kind), gap)]
    assert max((len(chunk.token_ids) for chunk in chunks), default=0) <= 128
