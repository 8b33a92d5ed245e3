"""From documents to chunks.

Every chunk is encoded by itself, since the encoding of a text is not a stretch of the encoding of the
document; that encoding gives the ids that the model will see, so it decides whether the chunk fits.
Tokenizing costs far more than all else here, hence the aim: encode a chunk once, and right (``section``).

A long document is first cut into sections of some ten thousand characters at its strongest boundaries; they
are then cut into chunks independently. Each is a generator of texts to encode, and many advance in step, so
that the tokenizer gets batches even from a single document. What a section yields depends on the document,
the tokenizer and the options alone, so batches, groups and threads change nothing; the work is linear in
the length of a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from m3build.chunking.boundaries import best_cut
from m3build.chunking.encoder import Encoder
from m3build.chunking.estimate import Estimator
from m3build.chunking.outline import Outline
from m3build.chunking.section import Cutting, cut_section
from m3build.chunking.titles import Titles
from m3build.records import Chunk, Document
from m3build_formats.errors import UsageError
from m3build_formats.layout import MAX_REFERENCE_TOKENS

MINIMUM_REFERENCE_TOKENS = 16
RULE = 1  # grows whenever the same document would be cut in another way

_GROUP_DOCUMENTS, _GROUP_CHARACTERS = 256, 1 << 18  # cut together
_SECTION = 1 << 14  # characters at most
_BATCH = 128  # texts for the tokenizer at a time
_TITLE_SHARE = 3  # a title takes at most the limit divided by this


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """How documents are cut: tokens in a chunk at most (the reference BOS not counted), and whether a title
    goes before each.

    Raises UsageError for a limit out of range: below 16 a title and a character of an exotic script might
    not fit together.
    """

    reference_tokens: int = 128
    title: bool = False

    def __post_init__(self) -> None:
        if not MINIMUM_REFERENCE_TOKENS <= self.reference_tokens <= MAX_REFERENCE_TOKENS:
            raise UsageError(
                f"a reference of {self.reference_tokens} tokens: reference_tokens must be from "
                f"{MINIMUM_REFERENCE_TOKENS} to {MAX_REFERENCE_TOKENS}"
            )


class Chunker:
    """Cuts documents into chunks for one tokenizer.

    ``tokenizer`` is a fast transformers tokenizer or a ``tokenizers.Tokenizer``; a copy of it is used.
    Raises MismatchError for a slow one.
    """

    def __init__(self, tokenizer: Any, options: ChunkOptions | None = None) -> None:
        self.options = options or ChunkOptions()
        self._encoder = Encoder(tokenizer)
        self._estimator = Estimator(self._encoder.count)

    def describe(self) -> dict[str, object]:
        """What shapes the chunks besides documents and tokenizer, as a JSON object."""
        return {"reference_tokens": self.options.reference_tokens, "rule": RULE, "title": self.options.title}

    def tokenizer_json(self) -> str:
        """The tokenizer as a ``tokenizers.Tokenizer`` reads it: another process makes the same chunker of
        it."""
        return self._encoder.to_json()

    def cut(self, document: Document) -> list[Chunk]:
        """The chunks of a document in order.

        Their spans cover every character that is not white space once; stretches in which the tokenizer
        finds no token at all may be left out. A blank document has no chunks. Raises MismatchError where a
        single character takes more tokens than a chunk may have.
        """
        return self._cut_group([document])[0]

    def cut_many(self, documents: Iterable[Document]) -> Iterator[tuple[Document, list[Chunk]]]:
        """Each document with its chunks, in order, as ``cut`` gives them; faster for short documents.

        Reads ahead by 256 documents or about 260,000 characters at most.
        """
        for group in groups_of(documents):
            yield from zip(group, self._cut_group(group), strict=True)

    def _cut_group(self, group: list[Document]) -> list[list[Chunk]]:
        owners: list[int] = []
        cuttings: list[Cutting] = []
        for owner, document in enumerate(group):
            outline = Outline(document)
            for section in _sections(document.text, outline):
                owners.append(owner)
                cuttings.append(self._cutting(document, outline, section))
        results: list[list[Chunk]] = [[] for _ in group]
        for owner, chunks in zip(owners, self._in_step(cuttings), strict=True):
            results[owner] += chunks
        return results

    def _cutting(self, document: Document, outline: Outline, span: tuple[int, int]) -> Cutting:
        """A generator that does nothing before its turn, so that only sections in work hold forecasts."""
        limit = self.options.reference_tokens
        titles = Titles(outline, limit // _TITLE_SHARE) if self.options.title else None
        forecast = self._estimator.forecast(document.text[slice(*span)])
        return (yield from cut_section(document, outline, span, forecast, limit, titles))

    def _in_step(self, cuttings: list[Cutting]) -> list[list[Chunk]]:
        """Run generators, as many at a time as make a good batch; their results in their order."""
        results: list[list[Chunk]] = [[] for _ in cuttings]
        fresh = enumerate(cuttings)
        waiting: list[tuple[int, Cutting]] = []
        texts: list[str] = []
        while True:
            while len(texts) < _BATCH and (started := next(fresh, None)):
                index, cutting = started
                try:
                    texts.append(next(cutting))
                except StopIteration as end:
                    results[index] = end.value
                else:
                    waiting.append(started)
            if not texts:
                return results
            answers = self._encoder.encode(texts)
            texts = []
            ended: set[int] = set()
            for (index, cutting), answer in zip(waiting, answers, strict=True):
                try:
                    texts.append(cutting.send(answer))
                except StopIteration as end:
                    results[index] = end.value
                    ended.add(index)
            if ended:
                waiting = [entry for entry in waiting if entry[0] not in ended]


def _sections(text: str, outline: Outline) -> Iterator[tuple[int, int]]:
    """Spans that are cut into chunks by themselves: all of the text, or parts of at most ``_SECTION``
    characters.
    """
    start = 0
    while len(text) - start > _SECTION:
        end = best_cut(text, start, start + _SECTION, outline)
        yield start, end
        start = end
    yield start, len(text)


def groups_of(documents: Iterable[Document]) -> Iterator[list[Document]]:
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
