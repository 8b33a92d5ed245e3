"""Documents as token ids, some held out, and the references that their pieces retrieve.

A document is cut twice: into references of at most 128 tokens, as a bank is, and into pieces of 64 tokens,
the query chunks. Contexts start at multiples of 64 and begin with the tokenizer's BOS, so that the query
chunks of every context are pieces of the document: piece k is tokens 64·k − b to 64·(k + 1) − b, b for BOS.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from m3build.chunking import Chunker, ChunkOptions
from m3build.corpus import discover
from m3build.corpus.documents import read_documents
from m3build.embed.lexical import LexicalEmbedder
from m3build.evaluation.overlap import overlaps
from m3build.model.causal import CausalModel

PIECE = 64
HELD_OUT_ONE_IN = 8
MOST_OVERLAP = 0.9
CANDIDATES = 8
QUERIES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Texts(Sequence[list[int]]):
    """Texts as token ids, one after the other in one array: int32 ``ids`` (tokens,) and where each text ends
    in it, int64 ``ends`` (texts,)."""

    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> list[int]: ...
    @overload
    def __getitem__(self, at: slice) -> list[list[int]]: ...
    def __getitem__(self, at: int | slice) -> list[int] | list[list[int]]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        ids: list[int] = self.ids[self.ends[number - 1] if number else 0 : self.ends[number]].tolist()
        return ids

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.ends, prepend=0)

    def run(self, start: int, tokens: int, between: Sequence[int]) -> list[int]:
        """``tokens`` of them in a row, whatever texts they are of, with ``between`` where a text begins."""
        first, last = np.searchsorted(self.ends, (start, start + tokens), side="right")
        at = np.repeat(self.ends[first:last] - start, len(between))
        ids = np.insert(self.ids[start : start + tokens], at, np.tile(between, last - first).astype(np.int32))
        run: list[int] = ids[:tokens].tolist()
        return run


@dataclass(frozen=True, slots=True)
class Split:
    """Documents as token ids: those to train on, those never trained on; and the references of the former,
    with the number of the document that each is of."""

    train: Texts
    held_out: Sequence[list[int]]
    references: Texts
    owners: Sequence[int]


def read_corpus(model: CausalModel, sources: Sequence[str], cache: Path | None = None) -> Split:
    """Read SOURCES. Which documents are held out follows from their ids alone. The ids are kept in the
    directory ``cache``, and found there again as long as files and tokenizer are the same."""
    files = [(file.name, file.bytes, Path(file.path).stat().st_mtime_ns) for file in discover(sources, print)]
    of = [files, model.tokenizer.backend_tokenizer.to_str(), model.shape.reference_tokens]
    key = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]
    path = cache / f"tokens-{key}.safetensors" if cache else None
    if path is None or not path.exists():
        found = _tokenized(model, sources)
        if path is None:
            return _split(found)
        save_file(found, path.with_suffix(".unfinished"))
        path.with_suffix(".unfinished").rename(path)
    return _split(load_file(path))


def _split(arrays: dict[str, npt.NDArray[Any]]) -> Split:
    def of(name: str) -> Texts:
        return Texts(arrays[name], np.cumsum(arrays[f"{name}/lengths"], dtype=np.int64))

    return Split(of("train"), of("held_out"), of("references"), arrays["owners"].tolist())


def _tokenized(model: CausalModel, sources: Sequence[str]) -> dict[str, npt.NDArray[np.int32]]:
    names = ("train", "held_out", "references")
    found = {key: array("i") for name in names for key in (name, f"{name}/lengths")} | {"owners": array("i")}

    def add(name: str, ids: Sequence[int]) -> None:
        found[name].extend(ids)
        found[f"{name}/lengths"].append(len(ids))

    chunker = Chunker(model.tokenizer, ChunkOptions(reference_tokens=model.shape.reference_tokens))
    documents = read_documents(sources, lambda reject: print(f"left out: {reject.source}: {reject.reason}"))
    for document, chunks in chunker.cut_many(documents):
        ids = model.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if hashlib.sha256(document.id.encode()).digest()[0] % HELD_OUT_ONE_IN == 0:
            add("held_out", ids)
            continue
        found["owners"].extend([len(found["train/lengths"])] * len(chunks))
        for chunk in chunks:
            add("references", chunk.token_ids)
        add("train", ids)
    return {name: np.array(values, dtype=np.int32) for name, values in found.items()}


class Retrieval:
    """For pieces of documents, the references of other documents that fit them best (lexical embedder)."""

    def __init__(self, split: Split, model: CausalModel) -> None:
        self._split, self._model = split, model

    @cached_property
    def _fitted(self) -> tuple[LexicalEmbedder, npt.NDArray[np.float32]]:
        """The embedder and the references' vectors; made when first needed, since stage 1 needs none."""
        texts = self._model.tokenizer.batch_decode(self._split.references[:])
        embedder = LexicalEmbedder()
        embedder.fit(texts)
        return embedder, embedder.embed(texts).astype(np.float32)

    def best(
        self, document: list[int], pieces: slice = slice(None), owner: int | None = None
    ) -> list[list[int]]:
        """Numbers of the best references for pieces of a document (by default all), best first. Left out:
        those of the document itself (``owner``), and those that overlap with it by more than 90 % (eq. 6)."""
        embedder, vectors = self._fitted
        bos = len(self._model.bos)
        starts = range(-bos, len(document), PIECE)[pieces]
        texts = [document[max(start, 0) : start + PIECE] for start in starts]
        queries = embedder.embed_queries(self._model.tokenizer.batch_decode(texts))
        # A long document has thousands of pieces, and there are hundreds of thousands of references.
        blocks = (queries[first : first + QUERIES] for first in range(0, len(queries), QUERIES))
        order = [first_places(scores, CANDIDATES) for block in blocks for scores in block @ vectors.T]
        return [
            [
                int(n)
                for n in row
                if self._split.owners[n] != owner
                and not overlaps(document, self._split.references[n], MOST_OVERLAP)
            ]
            for row in order
        ]

    def continued(self, found: Sequence[int], document: list[int]) -> list[int]:
        """Numbers of references, each followed by the one with which its document goes on; none twice, and
        none that overlaps with ``document`` by more than 90 %."""
        numbers: dict[int, None] = {}
        for number in found:
            numbers[number] = None
            after = number + 1
            if (
                after < len(self._split.owners)
                and self._split.owners[after] == self._split.owners[number]
                and not overlaps(document, self._split.references[after], MOST_OVERLAP)
            ):
                numbers[after] = None
        return list(numbers)


def first_places(scores: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Numbers of the ``count`` highest scores, the highest first, of equal ones the lower number; without
    sorting all the others."""
    found = np.arange(len(scores))
    if len(scores) > count:
        found = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return found[np.argsort(-scores[found], kind="stable")][:count]
