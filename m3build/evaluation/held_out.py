"""The text that an evaluation is made on: documents that the corpus readers give, or a fixed draw of them.

A draw takes the documents with the least hashes of seed and id, so it depends on neither order nor number of
the others, and only documents that are in it so far are held.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from m3build.corpus import IdRegistry, SourceOptions, discover, number_equals, read_range, split
from m3build.progress import Progress
from m3build.records import Document, Reject
from m3build_formats.errors import InputError


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One document: its id, its number of characters and its token ids without any special token."""

    id: str
    characters: int
    ids: tuple[int, ...]


def held_out_documents(
    sources: Sequence[str | os.PathLike[str]],
    options: SourceOptions,
    tokenizer: Any,
    progress: Progress,
    *,
    documents: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> Iterator[HeldOut]:
    """The documents of sources that hold text, in the order of the sources; with ``documents`` or ``tokens``
    at most so many, drawn by ``seed``, in the order of the draw, the last one cut at the limit of tokens.

    What cannot be read is told to ``progress``. Raises UsageError (no such path), InputError where no
    document is left.
    """
    found = _tokenized(sources, options, tokenizer, progress)
    if documents is not None or tokens is not None:
        found = iter(draw(found, documents, tokens, seed))
    some = False
    for document in found:
        some = True
        yield document
    if not some:
        raise InputError(f"no text to evaluate on in {', '.join(map(str, sources))}")


def draw(found: Iterator[HeldOut], documents: int | None, tokens: int | None, seed: int) -> list[HeldOut]:
    """The documents with the least hashes, as many as fit into the limits."""
    # Of a heap's items the largest hash is to leave first.
    heap: list[tuple[int, int, HeldOut]] = []
    held = 0
    for number, document in enumerate(found):
        heappush(heap, (-_hash(seed, document.id), -number, document))
        held += len(document.ids)
        while heap and (
            (documents is not None and len(heap) > documents)
            or (tokens is not None and held - len(heap[0][2].ids) >= tokens)
        ):
            held -= len(heappop(heap)[2].ids)
    chosen = [document for _, _, document in sorted(heap, reverse=True)]
    if tokens is not None and held > tokens:
        last = chosen[-1]
        kept = len(last.ids) - (held - tokens)
        # Characters of a part are not known without decoding; its share of them stands for them.
        chosen[-1] = HeldOut(last.id, round(last.characters * kept / len(last.ids)), last.ids[:kept])
    return chosen


def _hash(seed: int, identity: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{identity}".encode("utf-8", "surrogatepass")).digest()[:8])


def _tokenized(
    sources: Sequence[str | os.PathLike[str]], options: SourceOptions, tokenizer: Any, progress: Progress
) -> Iterator[HeldOut]:
    for document in _read(sources, options, progress):
        ids = (
            tokenizer.encode(document.text, add_special_tokens=False, verbose=False)
            if document.text.strip()
            else []
        )
        if ids:
            yield HeldOut(document.id, len(document.text), tuple(ids))


def _read(
    sources: Sequence[str | os.PathLike[str]], options: SourceOptions, progress: Progress
) -> Iterator[Document]:
    def tell(reject: Reject) -> None:
        progress.note(f"{reject.source}, {reject.where}: {reject.reason}: left out")

    with IdRegistry() as registry:
        for file in discover([os.fspath(source) for source in sources], tell):
            for part in split(file, options):
                for item in number_equals(read_range(part, options), registry):
                    if isinstance(item, Document):
                        yield item
                    else:
                        tell(item)
