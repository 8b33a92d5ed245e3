"""From queries to chunks: candidates from the index, their texts from the shards, the final order from the
embedder.

Design choices:

- What an approximate index finds are candidates only. They are re-ranked from the stored texts, whose bytes
  are checked as they are read.
- A text that stands in several shards has a row in each; it is returned once, with all the places where it
  was found.
- Index parts and embedder are opened at the first search and kept; only the coarse centroids and FAISS's
  small tables are copied into memory.
- A re-ranked score of 0 says that text and query have nothing in common; such a text is no hit.
- What a hit goes on with can be worth more to a model that reads on than the next best hit is (m3-mini's card
  has figures), so each hit may be followed by its continuation, as in RETRO (Borgeaud et al., "Improving
  Language Models by Retrieving from Trillions of Tokens", 2022, §2.3). Rows of a shard stand in order of
  first occurrence, so the continuation is the next row, if that is of the same document.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from m3build.embed import Embedder, load_embedder
from m3build.index import Found, IndexState, Part, PartedIndex, exact_search, open_part
from m3build.records import reference_text
from m3build_formats.errors import CorruptError, MismatchError, UsageError
from m3build_formats.open_bank import BankFiles
from m3build_formats.shard import Shard

QUERIES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Source:
    """Where a chunk stands: document id, its source file, its position there (byte offset or row), and the
    span in characters of its text."""

    document: str
    source: str
    position: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found. ``id`` is its text hash in hex; ``shard`` and ``row`` are the first place where
    its memory lies."""

    id: str
    score: float
    text: str
    title: str
    sources: tuple[Source, ...]
    shard: int
    row: int


def search(
    files: BankFiles,
    queries: Sequence[str],
    k: int = 5,
    embedder: Embedder | None = None,
    exact: bool = False,
    continuations: bool = False,
) -> list[list[Hit]]:
    """The ``k`` best chunks for each query, best first; see ``Searcher.search``. To search more than once
    keep a ``Searcher``."""
    return Searcher(files, embedder).search(queries, k, exact, continuations)


class Searcher:
    """Searches one version of a bank. Thread-safe. ``embedder`` replaces the one that the bank describes (it
    must be equal to it)."""

    def __init__(self, files: BankFiles, embedder: Embedder | None = None) -> None:
        self._shards: tuple[Shard, ...] = files.shards
        self._files = files
        self._lock = threading.Lock()
        self._given = embedder
        self._opened: tuple[Embedder, PartedIndex] | None = None

    def search(
        self, queries: Sequence[str], k: int = 5, exact: bool = False, continuations: bool = False
    ) -> list[list[Hit]]:
        """The ``k`` best chunks for each query, best first, fewer where the bank has fewer that fit.

        With ``exact`` the candidates come from a scan of all stored embeddings instead of the index. With
        ``continuations`` each of them is followed by the chunk with which its document goes on, with the same
        score, each chunk once and ``k`` in all. That is the next chunk of the document of its first place
        which stands there for the first time: what repeats an earlier chunk of the shard is passed over.

        Raises UsageError (k under 1), CorruptError (bytes of the bank that were read are not what the
        manifest says), MismatchError (the embedder given is not the bank's).
        """
        if k < 1:
            raise UsageError(f"search: k is {k}; ask for at least 1 chunk")
        embedder, index = self._open()
        hits: list[list[Hit]] = []
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            some = list(queries[first : first + QUERIES_AT_ONCE])
            vectors = embedder.embed_queries(some)

            def look(limit: int, vectors: npt.NDArray[np.float32] = vectors) -> Found:
                return (
                    exact_search((shard.embeddings() for shard in self._shards), vectors, limit)
                    if exact
                    else index.search(vectors, limit)
                )

            for query, candidates in zip(
                some, self._candidates(look, len(some), max(k, embedder.candidates), k), strict=True
            ):
                best = self._best(query, candidates, k, embedder)
                hits.append(list(islice(self._continued(best), k)) if continuations else best)
        return hits

    def _open(self) -> tuple[Embedder, PartedIndex]:
        with self._lock:
            if self._opened is None:
                arrays = self._files.embedder_arrays()
                embedder = load_embedder(arrays) if self._given is None else self._given
                state = IndexState.from_arrays(arrays)
                if self._given is not None and not embedder.fits(arrays):
                    raise MismatchError(
                        f"search: {embedder.name} is not the embedder that this bank was made with"
                    )
                self._check_facts(embedder, state)
                parts = [_once(state, shard) for shard in self._shards]
                self._opened = embedder, PartedIndex(state, parts)
            return self._opened

    def _check_facts(self, embedder: Embedder, state: IndexState) -> None:
        """What the arrays hold must be what the manifest says, by which the shards are read and people
        judge."""
        manifest = self._files.manifest
        if not embedder.dim == state.dim == manifest.embedder["dim"]:
            raise CorruptError(
                f"index: {state.dim} dimensions, but those of the embedder are {embedder.dim} and those of "
                f"the embeddings {manifest.embedder['dim']}"
            )
        for key in ("type", "metric"):
            found, said = state.facts()[key], manifest.index[key]
            if found != said:
                raise CorruptError(f"index: its {key} is {found}, the manifest says {said[:60]!r}")

    def _candidates(
        self, look: Callable[[int], Found], queries: int, wanted: int, k: int
    ) -> list[list[_Candidate]]:
        """The distinct chunks that the index finds for each query, best first: ``wanted`` of them or nearly
        so."""
        limit = wanted
        while True:
            found = look(limit)
            distinct = [self._distinct(found, number) for number in range(queries)]
            # Copies of a text in many shards can fill the places of others: then look further.
            enough = max(k, wanted // 2)
            crowded = any(
                len(some) < enough and bool((found.rows[number] >= 0).sum() == limit)
                for number, some in enumerate(distinct)
            )
            if not crowded:
                return distinct
            limit *= 4

    def _distinct(self, found: Found, number: int) -> list[_Candidate]:
        by_id: dict[bytes, _Candidate] = {}
        for score, part, row in zip(
            found.scores[number].tolist(),
            found.parts[number].tolist(),
            found.rows[number].tolist(),
            strict=True,
        ):
            if row < 0:
                continue
            identity = self._shards[part].chunk_id(row)
            if identity in by_id:
                by_id[identity].places.append((part, row))
            else:
                by_id[identity] = _Candidate(score, [(part, row)])
        return list(by_id.values())

    def _best(self, query: str, candidates: list[_Candidate], k: int, embedder: Embedder) -> list[Hit]:
        if not embedder.candidates:
            return [self._hit(candidate.score, candidate) for candidate in candidates[:k]]
        # Whole chunks are made of the few that are found: the candidates are many.
        scores = embedder.rerank(query, [self._text(candidate) for candidate in candidates])
        # A stable sort: the index's order, then part and row, settles equal scores.
        order = np.argsort(-scores, kind="stable")[:k].tolist()
        return [self._hit(float(scores[n]), candidates[n]) for n in order if scores[n] > 0]

    def _continued(self, best: Sequence[Hit]) -> Iterator[Hit]:
        # A continuation may be among the best itself, and is known there with all its places.
        known = {hit.id: hit for hit in best}
        given: set[str] = set()
        for hit in best:
            for one in (hit, self._continuation(hit)):
                if one is not None and one.id not in given:
                    given.add(one.id)
                    yield replace(known.get(one.id, one), score=hit.score)

    def _continuation(self, hit: Hit) -> Hit | None:
        shard, row = self._shards[hit.shard], hit.row + 1
        if row == shard.rows:
            return None
        own = shard.chunk(hit.row).occurrences[0]
        if not any(other.row == own.row and other.start >= own.end for other in shard.chunk(row).occurrences):
            return None
        return self._hit(hit.score, _Candidate(hit.score, [(hit.shard, row)]))

    def _text(self, candidate: _Candidate) -> str:
        shard, row = candidate.places[0]
        return reference_text(*self._shards[shard].title_and_text(row))

    def _hit(self, score: float, candidate: _Candidate) -> Hit:
        number, place = candidate.places[0]
        chunk = self._shards[number].chunk(place)
        shard, row = min(candidate.places)
        sources = tuple(sources_of(self._shards, sorted(candidate.places)))
        return Hit(chunk.id.hex(), score, chunk.text, chunk.title, sources, shard, row)


@dataclass(frozen=True, slots=True)
class _Candidate:
    score: float
    places: list[tuple[int, int]]


def sources_of(shards: Sequence[Shard], places: Sequence[tuple[int, int]]) -> Iterator[Source]:
    """All occurrences of a chunk that has these places (shard, row), in their order."""
    for number, row in places:
        shard = shards[number]
        occurrences = shard.chunk(row).occurrences
        if not occurrences:
            raise CorruptError(f"shard {number}: the chunk in row {row} has no occurrence")
        for occurrence in occurrences:
            try:
                document = shard.document(occurrence.row)
            except IndexError:
                raise CorruptError(
                    f"shard {number}: the chunk in row {row} names document row {occurrence.row} of "
                    f"{shard.documents}"
                ) from None
            yield Source(
                occurrence.document, document.source, document.position, occurrence.start, occurrence.end
            )


def _once(state: IndexState, shard: Shard) -> Callable[[], Part]:
    """A function that opens the shard's index part at its first call and remembers it."""
    lock = threading.Lock()
    opened: list[Part] = []

    def part() -> Part:
        with lock:
            if not opened:
                opened.append(open_part(state, shard.index_bytes(), shard.rows))
            return opened[0]

    return part
