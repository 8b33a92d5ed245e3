"""From a document to its chunks.

Every chunk is encoded by itself, since the encoding of a text is not a stretch of the encoding of the document; that encoding gives the ids that the model
will see, so it decides whether the chunk fits. Tokenizing costs far more than all else here, hence the aim: encode a chunk once, and right.

A window is forecast (``estimate``), the best boundary in it chosen, and the piece encoded. It fits: take it, and go on behind it. It does
not: its token ends say exactly what fits, so cut again within that. It fits with much room left (the forecast was far off): try once more with a wider window.
So a cut depends on the document, the tokenizer and the options alone, and the work is linear in the length of the document.

A long document is first cut into sections at its strongest boundaries, a few in a hundred thousand characters, which are then cut into chunks
independently. Each is a generator of texts to encode, and ``cut_many`` advances many in step, so that the tokenizer gets batches even of a single
document. What a section yields does not depend on the others.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from m3build.chunking.boundaries import best_cut
from m3build.chunking.encoder import Encoded, Encoder
from m3build.chunking.estimate import Estimator, Forecast
from m3build.chunking.outline import Outline
from m3build.chunking.titles import Titles
from m3build.records import Chunk, Document, reference_text
from m3build_formats.errors import MismatchError, UsageError
from m3build_formats.layout import MAX_CHUNK_CHARACTERS, MAX_REFERENCE_TOKENS

MINIMUM_REFERENCE_TOKENS = 16
RULE = 1  # grows whenever the same document would be cut in another way

_INK = re.compile(r"\S")
_GROUP_DOCUMENTS, _GROUP_CHARACTERS = 1024, 1 << 22
_SECTION = 1 << 15  # characters
_BATCH = 64  # texts for the tokenizer at a time
_AIM = 1.0  # of the token limit, by forecast
_SHARE = 0.7  # of what is left goes into the last chunk but one
_FEW_BYTES = 16  # a token hardly stands for more
_WIDEN_AT = 1.3  # times the tokens that there were was the forecast
_MAX_WIDENINGS = 8

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
        self._estimator = Estimator(self._encoder.count)

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
        cuttings: list[Cutting] = []
        owners: list[int] = []
        for owner, document in enumerate(group):
            outline = Outline(document)
            for start, end in _sections(document.text, outline):
                cuttings.append(self._cutting(document, outline, start, end))
                owners.append(owner)
        results: list[list[Chunk]] = [[] for _ in group]
        for owner, chunks in zip(owners, self._in_step(cuttings), strict=True):
            results[owner] += chunks
        return results

    def _in_step(self, cuttings: list[Cutting]) -> list[list[Chunk]]:
        """Run generators, as many at a time as make a good batch; results in their order."""
        results: list[list[Chunk]] = [[] for _ in cuttings]
        todo = iter(enumerate(cuttings))
        waiting: list[tuple[int, Cutting, str]] = []
        while True:
            while len(waiting) < _BATCH and (fresh := next(todo, None)):
                self._advance(*fresh, None, waiting, results)
            if not waiting:
                return results
            answers = self._encoder.encode([text for _, _, text in waiting])
            asked, waiting = waiting, []
            for (index, cutting, _), answer in zip(asked, answers, strict=True):
                self._advance(index, cutting, answer, waiting, results)

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

    def _cutting(self, document: Document, outline: Outline, begin: int, stop: int) -> Cutting:
        """Cut one section: yield texts to encode, take their encodings, return the chunks."""
        section = _Section(document, outline, begin, stop, self._estimator.forecast(document.text[begin:stop]))
        titles = Titles(outline, self.options.reference_tokens // 3) if self.options.title else None
        chunks: list[Chunk] = []
        found = _INK.search(document.text, begin, stop)
        while found:
            title, title_tokens = (yield from titles.title_at(found.start())) if titles else ("", 0)
            chunk = yield from section.next_chunk(found.start(), title, title_tokens, self.options.reference_tokens)
            if chunk.token_ids:
                chunks.append(chunk)
            found = _INK.search(document.text, chunk.end, stop)
        return chunks


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of a document that is cut by itself, with the forecast of its tokens."""

    document: Document
    outline: Outline
    begin: int
    stop: int
    forecast: Forecast

    def next_chunk(self, start: int, title: str, title_tokens: int, limit: int) -> Generator[str, Encoded, Chunk]:
        """The chunk that starts at ``start``, with ``title`` before it."""
        text, forecast, begin = self.document.text, self.forecast, self.begin
        lead = len(reference_text(title, " ")) - 1
        widest = min(self.stop, start + MAX_CHUNK_CHARACTERS - lead)
        window = self._window(start, limit - title_tokens)
        high = max(start + 1, min(widest, begin + forecast.reach(start - begin, window)))
        best_end, best = start, Encoded((), ())
        may_widen = _MAX_WIDENINGS
        while True:
            at = high if high == self.stop else best_cut(text, start, high, self.outline)
            end = start + len(text[start:at].rstrip())
            if end <= best_end:
                break
            encoded = yield reference_text(title, text[start:end])
            tokens = len(encoded.ids)
            if tokens > limit:
                if end - start == 1:
                    raise _too_many(self.document, start, tokens, limit)
                high = min(max(start + 1, start + _fitting(encoded, limit) - lead), end - 1)
                may_widen = 0
            else:
                best_end, best = end, encoded
            own_tokens = tokens - bisect_right(encoded.ends, lead) if lead else tokens
            excess = forecast.learn(start - begin, end - begin, own_tokens)
            if tokens > limit:
                continue
            if excess < _WIDEN_AT or not may_widen or high == widest:
                break
            may_widen -= 1
            high = max(high, min(widest, begin + forecast.reach(start - begin, window)))
        return Chunk(text[start:best_end], start, best_end, title, best.ids, best.ends)

    def _window(self, start: int, tokens: int) -> float:
        """Tokens to aim at: ``tokens``, or less where little would be left for the last chunk of the section."""
        window = tokens * _AIM
        rest = 0.0
        if self.stop - start < _FEW_BYTES * tokens:
            rest = self.forecast.tokens(start - self.begin, self.stop - self.begin)
        return _SHARE * rest if window < rest < window / _SHARE else window


def _sections(text: str, outline: Outline) -> Iterator[tuple[int, int]]:
    """Parts of a document that are cut by themselves: one, or several of at most ``_SECTION`` characters."""
    start = 0
    while len(text) - start > _SECTION:
        end = best_cut(text, start, start + _SECTION, outline)
        yield start, end
        start = end
    yield start, len(text)


def _fitting(encoded: Encoded, limit: int) -> int:
    """The last place in an encoded text up to which whole characters take at most ``limit`` tokens."""
    over = bisect_left(encoded.ends, encoded.ends[limit])
    return encoded.ends[over - 1] if over else 0


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
