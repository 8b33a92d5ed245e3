"""How often a bank finds the document that answers a question: hit@k and mean reciprocal rank.

Design choices:

- A document becomes several chunks, so what is found is counted in documents: the first ``k`` distinct ones
  in the order of their best chunks. A chunk that stands in several documents brings them all, in the order of
  its occurrences.
- Enough chunks are asked for to see ``DEPTH`` distinct documents; a document beyond them counts as not found
  (so the mean reciprocal rank is that of the first ten).
- Four ways of searching the same chunks stand side by side: the bank's index, a scan of all its embeddings,
  and two baselines that know nothing of the bank's embedder (``baselines``). The difference between the first
  two is what the index loses; between those and the baseline of n-grams what the embedder's projection loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from m3build.bank import Bank
from m3build.evaluation.baselines import baselines
from m3build.evaluation.questions import Questions
from m3build.progress import Progress, Silent
from m3build_formats.errors import InputError
from m3build_formats.open_bank import BankFiles

DEPTH = 10
HITS = (1, 5, 10)
_FIRST_CHUNKS = 40
_QUERIES_AT_ONCE = 64

# For each query the documents of each chunk that was found, best chunk first; at most k chunks.
Search = Callable[[Sequence[str], int], list[list[tuple[str, ...]]]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of the questions for which an answering document is among the first k distinct ones, by k; and
    the mean of 1 / rank of the first such document, 0 where there is none among the first ten."""

    hits: Mapping[int, float]
    mrr: float

    def to_json(self) -> dict[str, float]:
        """``{"hit@1", "hit@5", "hit@10", "mrr"}``."""
        return {**{f"hit@{k}": share for k, share in self.hits.items()}, "mrr": self.mrr}


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """Scores of each way to search (see ``measure``); None for one that was left out, for the reason in
    ``notes``. ``missing`` counts answering documents that the bank does not hold."""

    questions: int
    unanswered: int
    missing: int
    scores: Mapping[str, Scores | None]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """``{"questions", "unanswered", "missing_documents", "notes"}`` and the scores by name."""
        return {
            "questions": self.questions,
            "unanswered": self.unanswered,
            "missing_documents": self.missing,
            **{name: scores.to_json() if scores else None for name, scores in self.scores.items()},
            "notes": list(self.notes),
        }


def measure(bank: Bank, questions: Questions, progress: Progress | None = None) -> RetrievalReport:
    """Scores of ``index``, ``exact`` (a scan of all embeddings), ``bm25_words`` and ``bm25_ngrams``.

    Raises InputError where the bank holds none of the documents that answer, CorruptError, MismatchError.
    """
    wanted = frozenset[str]().union(*questions.answers)
    missing = len(wanted) - _held(bank.files, wanted)
    if missing == len(wanted):
        raise InputError(
            "the bank holds none of the documents that answer the questions; their ids are those that "
            "compile --id-field took"
        )
    ways: dict[str, Search | None] = {"index": _through(bank, False), "exact": _through(bank, True)}
    others, notes = baselines(bank.files)
    ways.update(others)
    scores: dict[str, Scores | None] = {}
    known = [way for way in ways.values() if way is not None]
    with (progress or Silent()).stage("retrieval", len(known) * len(questions), "questions") as stage:
        for name, way in ways.items():
            scores[name] = score(way, questions, stage.advance) if way is not None else None
    return RetrievalReport(len(questions), questions.unanswered, missing, scores, tuple(notes))


def score(search: Search, questions: Questions, advance: Callable[[int], object] = lambda _: None) -> Scores:
    """Hit shares and mean reciprocal rank of one way to search."""
    ranks: list[int | None] = []
    for first in range(0, len(questions), _QUERIES_AT_ONCE):
        texts = questions.texts[first : first + _QUERIES_AT_ONCE]
        for documents, answers in zip(
            first_documents(search, texts), questions.answers[first : first + _QUERIES_AT_ONCE], strict=True
        ):
            ranks.append(next((n for n, document in enumerate(documents, 1) if document in answers), None))
        advance(len(texts))
    found = [rank for rank in ranks if rank is not None]
    number = len(questions)
    return Scores(
        {k: sum(rank <= k for rank in found) / number for k in HITS}, sum(1 / rank for rank in found) / number
    )


def first_documents(search: Search, queries: Sequence[str]) -> list[list[str]]:
    """The first ``DEPTH`` distinct documents of each query, fewer where fewer are found."""
    ranked: list[list[str]] = [[] for _ in queries]
    pending = list(range(len(queries)))
    chunks = _FIRST_CHUNKS
    while pending:
        crowded = []
        for number, found in zip(pending, search([queries[n] for n in pending], chunks), strict=True):
            ranked[number] = list(islice(distinct(found), DEPTH))
            # Chunks of a few long documents can fill all places: then look further.
            if len(ranked[number]) < DEPTH and len(found) == chunks:
                crowded.append(number)
        pending = crowded
        chunks *= 4
    return ranked


def distinct(found: Iterable[tuple[str, ...]]) -> Iterable[str]:
    """Documents of chunks in order, each once."""
    return dict.fromkeys(document for documents in found for document in documents)


def _through(bank: Bank, exact: bool) -> Search:
    def search(queries: Sequence[str], chunks: int) -> list[list[tuple[str, ...]]]:
        return [
            [tuple(source.document for source in hit.sources) for hit in hits]
            for hits in bank.search(list(queries), chunks, exact)
        ]

    return search


def _held(files: BankFiles, wanted: frozenset[str]) -> int:
    """How many of the documents the bank holds."""
    found: set[str] = set()
    for shard in files.shards:
        for batch in shard.document_batches():
            found.update(wanted.intersection(batch.column("id").to_pylist()))
    return len(found)
