"""The model's tokenizer, made fit for encoding references by themselves.

The caller's tokenizer is never changed: truncation, padding and dropout are switched off on a copy. Special
tokens that a text spells out ("</s>") are encoded as the plain characters that they are there: a document
must not be able to put a control token into a memory. Only fast tokenizers will do: cutting needs offsets,
and a slow one would take the time of the whole compilation.
"""

from __future__ import annotations

import json
import struct
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from m3build.chunking.spelling import Spelling, split_flat
from m3build_formats.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer


# The library's own number, 10,000, takes 4 MB in place of 2 and saves some hundredths of the time of cutting.
_REMEMBERED_WORDS = 4096


class Encoded(NamedTuple):
    """Token ids of one text and the offset in characters at which each token ends (non-decreasing).

    32-bit integers in arrays: tuples of Python integers would be made, counted and dropped for every token.
    """

    ids: array[int]
    ends: array[int]


class Encoder:
    """Encodes texts by themselves, without special tokens, in the same way whatever else is in the batch."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = _plain_copy(tokenizer)
        spelling = Spelling(self._tokenizer)
        self._spelling = spelling if spelling.is_lossless else None

    def to_json(self) -> str:
        """All that another ``Encoder`` needs to be the same."""
        text: str = self._tokenizer.to_str()
        return text

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [
            len(encoding) for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """One result for each text, in order."""
        if self._spelling is None:
            return [
                _with_offsets(encoding)
                for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)
            ]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        counts = np.array([len(encoding) for encoding in encodings])
        # struct takes Python integers apart faster than NumPy does.
        numbers = chain.from_iterable([encoding.ids for encoding in encodings])
        flat = np.frombuffer(struct.pack(f"{counts.sum()}i", *numbers), np.int32)
        ends = self._spelling.ends(texts, flat, counts)
        found = [
            Encoded(ids, own)
            for ids, own in zip(split_flat(flat, np.cumsum(counts)), ends, strict=True)
            if own is not None
        ]
        if len(found) == len(texts):
            return found
        odd = [text for text, own in zip(texts, ends, strict=True) if own is None]
        spelled, others = iter(found), iter(self._tokenizer.encode_batch(odd, add_special_tokens=False))
        return [_with_offsets(next(others)) if own is None else next(spelled) for own in ends]


def _with_offsets(encoding: Encoding) -> Encoded:
    """Ids and ends as the tokenizer reports them, made non-decreasing (a token without characters of its
    own may report 0).
    """
    ends = array("i")
    highest = 0
    for _, end in encoding.offsets:
        highest = max(highest, end)
        ends.append(highest)
    return Encoded(array("i", encoding.ids), ends)


def _plain_copy(tokenizer: Any) -> Tokenizer:
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise MismatchError(
            f"{type(tokenizer).__name__} is a slow tokenizer written in Python; m3build needs a fast one: "
            "save it as tokenizer.json (convert it with transformers) beside the model"
        )
    settings = json.loads(backend.to_str())
    # A post-processor adds special tokens, which are not wanted, or takes spaces off the offsets.
    settings["truncation"] = settings["padding"] = settings["post_processor"] = None
    if settings["model"].get("dropout"):
        settings["model"]["dropout"] = None
    copy: Tokenizer = Tokenizer.from_str(json.dumps(settings))
    copy.encode_special_tokens = True
    # The tokenizer remembers words, and does not give them back when it is dropped (tokenizers 0.23).
    if (resize := getattr(copy.model, "_resize_cache", None)) is not None:
        resize(_REMEMBERED_WORDS)
    return copy
