"""From a document to its chunks.

Every chunk is encoded by itself, since the encoding of a text is not a stretch of the encoding of the document; that encoding gives the ids that the model
will see, so it decides whether the chunk fits. Tokenizing costs far more than all else here, hence the aim: encode a chunk once, and right.

A window is guessed from the bytes per token seen so far in the same document (at its start, in a fixed sample), the best boundary
in it is chosen, and the piece is encoded. It fits: take it, and go on behind it. It does not: its token ends say exactly what fits, so cut again within that. It
fits with much room left (the guess was far off): try once more with a wider window. So a cut depends on the document, the tokenizer and the
options alone, the work is linear in the length of the document, and no more of it is held than one window.

A document is a generator of texts to encode. ``cut_many`` advances a group of documents in step, to give the tokenizer batches; what a document
yields does not depend on its group.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from m3build.chunking.boundaries import best_cut
from m3build.chunking.encoder import Encoded, Encoder
from m3build.chunking.outline import Outline
from m3build.chunking.titles import Titles
from m3build.records import Chunk, Document, reference_text
from m3build_formats.errors import MismatchError, UsageError
from m3build_formats.layout import MAX_CHUNK_CHARACTERS, MAX_REFERENCE_TOKENS

MINIMUM_REFERENCE_TOKENS = 16
RULE = 1  # grows whenever the same document would be cut in another way

_INK = re.compile(r"\S")
_GROUP_DOCUMENTS, _GROUP_CHARACTERS = 64, 1 << 22
_MAX_WIDENINGS = 8
_WIDEN_AT = 1.3  # a window this many times as wide would have been right
_WIDEN_BY = 4.0  # at most

Cutting = Generator[str, Encoded, list[Chunk]]


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """How documents are cut: tokens in a chunk at most (the reference BOS not counted), and whether a title goes before each."""

    reference_tokens: int = 128
    title: bool = False

    def __post_init__(self) -> None:
        if not MINIMUM_REFERENCE_TOKENS <= self.reference_tokens <= MAX_REFERENCE_TOKENS:
            raise UsageError(
                f"a reference of {self.reference_tokens} tokens: reference_tokens must be from {MINIMUM_REFERENCE_TOKENS} to "
                f"{MAX_REFERENCE_TOKENS}"
            )


class Chunker:
    """Cuts documents into chunks for one tokenizer.

    ``tokenizer`` is a fast transformers tokenizer or a ``tokenizers.Tokenizer``; a copy of it is used. Raises MismatchError for a slow one.
    Not for use by several threads at once.
    """

    def __init__(self, tokenizer: Any, options: ChunkOptions | None = None) -> None:
        self.options = options or ChunkOptions()
        self._encoder = Encoder(tokenizer)

    def describe(self) -> dict[str, object]:
        """What shapes the chunks besides documents and tokenizer, as a JSON object."""
        return {"reference_tokens": self.options.reference_tokens, "rule": RULE, "title": self.options.title}

    def cut(self, document: Document) -> list[Chunk]:
        """The chunks of a document in order.

        Their spans cover every character that is not white space once, but for characters at the document's end for which the tokenizer has no token. A blank
        document has none. Raises MismatchError where a single character takes more tokens than a chunk may have.
        """
        return next(iter(self.cut_many([document])))[1]

    def cut_many(self, documents: Iterable[Document]) -> Iterator[tuple[Document, list[Chunk]]]:
        """Each document with its chunks, in order, as ``cut`` gives them. Holds some four million characters of documents at a time."""
        for group in _groups(documents):
            yield from zip(group, self._cut_group(group), strict=True)

    def _cut_group(self, group: list[Document]) -> list[list[Chunk]]:
        results: list[list[Chunk]] = [[] for _ in group]
        waiting: list[tuple[int, Cutting, str]] = []
        for index, document in enumerate(group):
            self._advance(index, self._cutting(document), None, waiting, results)
        while waiting:
            encoded = self._encoder.encode([text for _, _, text in waiting])
            turn, waiting = waiting, []
            for (index, cutting, _), answer in zip(turn, encoded, strict=True):
                self._advance(index, cutting, answer, waiting, results)
        return results

    @staticmethod
    def _advance(
        index: int,
        cutting: Cutting,
        answer: Encoded | None,
        waiting: list[tuple[int, Cutting, str]],
        results: list[list[Chunk]],
    ) -> None:
        try:
            text = next(cutting) if answer is None else cutting.send(answer)
        except StopIteration as end:
            results[index] = end.value
        else:
            waiting.append((index, cutting, text))

    def _cutting(self, document: Document) -> Cutting:
        """Yield texts to encode, take their encodings, return the chunks."""
        text = document.text
        outline = Outline(document)
        titles = Titles(outline, self.options.reference_tokens // 3) if self.options.title else None
        chunks: list[Chunk] = []
        rate = self._encoder.bytes_per_token
        found = _INK.search(text)
        while found:
            start = found.start()
            title = (yield from titles.title_at(start)) if titles else ""
            chunk, rate = yield from self._next_chunk(document, outline, start, title, rate)
            if chunk.token_ids:
                chunks.append(chunk)
            found = _INK.search(text, chunk.end)
        return chunks

    def _next_chunk(
        self, document: Document, outline: Outline, start: int, title: str, rate: float
    ) -> Generator[str, Encoded, tuple[Chunk, float]]:
        """The chunk that starts at ``start``, and bytes per token as known after it."""
        text, limit = document.text, self.options.reference_tokens
        lead = len(reference_text(title, " ")) - 1
        widest = min(len(text), start + MAX_CHUNK_CHARACTERS - lead)
        window = limit * rate - len(title.encode())
        high = min(widest, _characters(text, start, window))
        best_end, best = start, Encoded((), ())
        widenings = 0
        while True:
            end = _end(text, start, high, outline)
            if end <= best_end:
                break
            encoded = yield reference_text(title, text[start:end])
            tokens = len(encoded.ids)
            size = _bytes(text, start, end)
            own_tokens = tokens - bisect_right(encoded.ends, lead)
            if own_tokens:
                rate = (rate + size / own_tokens) / 2
            if tokens > limit:
                if end - start == 1:
                    raise _too_many(document, start, tokens, limit)
                widenings = _MAX_WIDENINGS
                high = min(max(start + 1, start + _fitting(encoded, limit) - lead), end - 1)
                continue
            best_end, best = end, encoded
            wanted = size * (limit - tokens + own_tokens) / own_tokens if own_tokens else math.inf
            if high == widest or widenings == _MAX_WIDENINGS or wanted < _WIDEN_AT * window:
                break
            widenings += 1
            window = min(wanted, _WIDEN_BY * window)
            high = min(widest, _characters(text, start, window))
        return Chunk(text[start:best_end], start, best_end, title, best.ids, best.ends), rate


def _end(text: str, start: int, high: int, outline: Outline) -> int:
    """Where a chunk from ``start`` that may reach to ``high`` ends, white space at its end left out."""
    at = high if high == len(text) else best_cut(text, start, high, outline)
    return start + len(text[start:at].rstrip())


def _fitting(encoded: Encoded, limit: int) -> int:
    """The last place in an encoded text up to which whole characters take at most ``limit`` tokens."""
    over = bisect_left(encoded.ends, encoded.ends[limit])
    return encoded.ends[over - 1] if over else 0


def _characters(text: str, start: int, size: float) -> int:
    """The place ``size`` bytes of UTF-8 behind ``start``, at least one character on and at most the end of the text."""
    room = max(1, int(size))
    piece = text[start : start + room]
    if not piece.isascii():
        piece = piece.encode()[:room].decode(errors="ignore") or piece[:1]
    return start + len(piece)


def _bytes(text: str, start: int, end: int) -> int:
    return end - start if text.isascii() else len(text[start:end].encode())


def _too_many(document: Document, at: int, tokens: int, limit: int) -> MismatchError:
    return MismatchError(
        f"{document.id}: the tokenizer takes {tokens} tokens for the single character U+{ord(document.text[at]):04X} (character {at}), "
        f"more than a reference may have ({limit}): raise --reference-tokens"
    )


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Runs of documents that are held at the same time."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if len(group) >= _GROUP_DOCUMENTS or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
