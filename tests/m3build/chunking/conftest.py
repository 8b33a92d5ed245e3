"""Tokenizers of every common kind, built on the spot, and what all tests of cutting share."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

TRAINING = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps for a while in the warm sun.",
    "Explicit memories are sparse attention keys and values of short reference texts, nothing more.",
    "def compile(sources, bank):\n    for document in sources:\n        yield from cut(document)\n",
    "记忆是稀疏的注意力键和值。参考文本很短，最多一百二十八个词元。",
    "日本語の文章も、正しく切り分けられます。次の文です！",
]


def _byte_level(**over: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**over)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=["<s>", "</s>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING * 4, trainer)
    return tokenizer


def _sentence_piece(collapse: bool) -> Any:
    """BPE with byte fallback behind a Prepend normalizer, as the first Llamas have it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    if collapse:
        steps[:0] = [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + fallback, show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", " ▁") for text in TRAINING[:2]], trainer)
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(settings))


def _word_piece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]"], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def _unigram() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING * 4, trainer)
    return tokenizer


def _nfkc_bytes() -> Any:
    from tokenizers import normalizers

    tokenizer = _byte_level(add_prefix_space=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


_KINDS = {
    "byte-level": lambda: _byte_level(add_prefix_space=False),
    "byte-level with prefix space": lambda: _byte_level(add_prefix_space=True),
    "byte fallback": lambda: _sentence_piece(collapse=False),
    "byte fallback, spaces collapsed": lambda: _sentence_piece(collapse=True),
    "word pieces, lower case": _word_piece,
    "unigram, NFKC": _unigram,
    "bytes, NFKC, lower case": _nfkc_bytes,
}
LOSSLESS = ("byte-level", "byte-level with prefix space", "byte fallback", "byte fallback, spaces collapsed")


@cache
def build(kind: str) -> Any:
    """The tokenizer of one kind; the same object each time."""
    return _KINDS[kind]()


@pytest.fixture(params=list(_KINDS), scope="session")
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Each kind of tokenizer in turn."""
    return build(request.param)


@pytest.fixture(params=LOSSLESS, scope="session")
def lossless(request: pytest.FixtureRequest) -> Any:
    """Each kind of tokenizer whose tokens spell the text."""
    return build(request.param)


@pytest.fixture(scope="session")
def byte_level() -> Any:
    """A byte-level BPE, the most common kind."""
    return build("byte-level")


@pytest.fixture(scope="session")
def normalizing() -> Any:
    """A byte-level BPE behind NFKC and lower-casing: its tokens do not spell the text."""
    return build("bytes, NFKC, lower case")
