"""Two baselines for retrieval over a bank's own chunks, both BM25 of the library bm25s (an extra): over
words, as most people know it, and over the character n-grams that the default embedder hashes, each chunk
compared exactly.

Words are runs of letters and digits, hopeless for text without spaces. All postings are held in memory, so
larger banks are left out, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m3build.embed.ngrams import batches, count_ngrams, fold
from m3build.records import reference_text
from m3build_formats.open_bank import BankFiles

if TYPE_CHECKING:
    from m3build.evaluation.retrieval import Search

# Lucene's constants, which the default embedder has too.
K1, B = 1.2, 0.75
MAX_CHUNKS = 50_000
NAMES = ("bm25_words", "bm25_ngrams")
_WORD = r"(?u)\b\w+\b"

Tokens = list[npt.NDArray[np.uint32]]


def baselines(files: BankFiles) -> tuple[dict[str, Search | None], list[str]]:
    """A way to search by name, None where it is left out; and why, for people. Raises CorruptError."""
    nothing: dict[str, Search | None] = dict.fromkeys(NAMES)
    try:
        import bm25s  # noqa: F401 - whether it is there
    except ImportError:
        return nothing, ["BM25 is left out: it needs pip install 'm3build[eval]'"]
    if files.rows > MAX_CHUNKS:
        return nothing, [
            f"BM25 is left out: it would hold all {files.rows:,} chunks in memory, "
            f"more than {MAX_CHUNKS:,} are not tried"
        ]
    texts, documents = _chunks(files)
    if not texts:
        return nothing, ["BM25 is left out: the bank has no chunks"]
    return {
        "bm25_words": Bm25(texts, word_tokens()).over(documents),
        "bm25_ngrams": Bm25(texts, ngram_tokens).over(documents),
    }, []


class Bm25:
    """Texts under BM25 (Lucene's form), by a function from texts to the token numbers of each."""

    def __init__(self, texts: Sequence[str], tokens_of: Callable[[Sequence[str]], Tokens]) -> None:
        import bm25s

        self._tokens_of = tokens_of
        self._size = len(texts)
        tokens = tokens_of(texts)
        # bm25s wants token numbers without gaps.
        self._known = np.unique(np.concatenate([np.empty(0, np.uint32), *tokens]))
        vocabulary = {str(number): number for number in range(len(self._known))}
        self._scorer: Any = bm25s.BM25(k1=K1, b=B, method="lucene")
        if len(self._known):
            numbered = [np.searchsorted(self._known, some).astype(np.int32) for some in tokens]
            self._scorer.index((numbered, vocabulary), show_progress=False)

    def search(self, query: str, k: int) -> npt.NDArray[np.int64]:
        """Numbers of the best ``k`` texts, best first; those that share nothing with the query are left
        out."""
        [tokens] = self._tokens_of([query])
        tokens = tokens[np.isin(tokens, self._known)]
        if not len(tokens):
            return np.empty(0, np.int64)
        scores = self._scorer.get_scores_from_ids(np.searchsorted(self._known, tokens).tolist())
        order = np.argsort(-scores, kind="stable")[:k]
        best: npt.NDArray[np.int64] = order[scores[order] > 0].astype(np.int64)
        return best

    def over(self, documents: Sequence[tuple[str, ...]]) -> Search:
        """This as a way to search texts that stand in these documents."""

        def search(queries: Sequence[str], chunks: int) -> list[list[tuple[str, ...]]]:
            return [[documents[n] for n in self.search(query, chunks).tolist()] for query in queries]

        return search


def ngram_tokens(texts: Sequence[str]) -> Tokens:
    """The hashed character n-grams of the default embedder, with repetition."""

    def every() -> Iterator[npt.NDArray[np.uint32]]:
        for group in batches(texts):
            counted = count_ngrams(group)
            repeated = np.repeat(counted.buckets, counted.counts)
            yield from np.split(repeated, np.cumsum(counted.lengths)[:-1])

    return list(every())


def word_tokens() -> Callable[[Sequence[str]], Tokens]:
    """A function that gives words numbers, which it remembers."""
    import re

    numbers: dict[str, int] = {}
    pattern = re.compile(_WORD)

    def tokens(texts: Sequence[str]) -> Tokens:
        return [
            np.array(
                [numbers.setdefault(word, len(numbers)) for word in pattern.findall(fold(text))], np.uint32
            )
            for text in texts
        ]

    return tokens


def _chunks(files: BankFiles) -> tuple[list[str], list[tuple[str, ...]]]:
    """Every distinct reference text of the bank, and the documents it stands in."""
    texts: list[str] = []
    documents: list[tuple[str, ...]] = []
    numbers: dict[bytes, int] = {}
    for shard in files.shards:
        for chunk in shard.chunks():
            there = tuple(occurrence.document for occurrence in chunk.occurrences)
            if chunk.id in numbers:
                number = numbers[chunk.id]
                documents[number] = _once((*documents[number], *there))
                continue
            numbers[chunk.id] = len(texts)
            texts.append(reference_text(chunk.title, chunk.text))
            documents.append(_once(there))
    return texts, documents


def _once(documents: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(documents))
