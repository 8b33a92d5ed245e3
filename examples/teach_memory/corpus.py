"""Documents as token ids, some held out, and the references that their pieces retrieve.

A document is cut twice: into references of at most 128 tokens, as a bank is, and into pieces of 64 tokens,
the query chunks. Contexts start at multiples of 64 and begin with the tokenizer's BOS, so that the query
chunks of every context are pieces of the document: piece k is tokens 64·k − b to 64·(k + 1) − b, b for BOS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3build.chunking import Chunker, ChunkOptions
from m3build.corpus.documents import read_documents
from m3build.embed.lexical import LexicalEmbedder
from m3build.evaluation.overlap import overlaps
from m3build.model.causal import CausalModel

PIECE = 64
HELD_OUT_ONE_IN = 8
MOST_OVERLAP = 0.9
CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Split:
    """Documents as token ids: those to train on, those never trained on; and the references of the former,
    with the number of the document that each is of."""

    train: list[list[int]]
    held_out: list[list[int]]
    references: list[list[int]]
    texts: list[str]
    owners: list[int]


def read_corpus(model: CausalModel, sources: Sequence[str]) -> Split:
    """Read SOURCES. Which documents are held out follows from their ids alone."""
    split = Split([], [], [], [], [])
    chunker = Chunker(model.tokenizer, ChunkOptions(reference_tokens=model.shape.reference_tokens))
    documents = read_documents(sources, lambda reject: print(f"left out: {reject.source}: {reject.reason}"))
    for document, chunks in chunker.cut_many(documents):
        ids = model.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if hashlib.sha256(document.id.encode()).digest()[0] % HELD_OUT_ONE_IN == 0:
            split.held_out.append(ids)
            continue
        split.owners.extend([len(split.train)] * len(chunks))
        split.references.extend([list(chunk.token_ids) for chunk in chunks])
        split.texts.extend([chunk.reference_text for chunk in chunks])
        split.train.append(ids)
    return split


class Retrieval:
    """For pieces of documents, the references of other documents that fit them best (lexical embedder)."""

    def __init__(self, split: Split, model: CausalModel) -> None:
        self._split, self._model = split, model
        self._embedder = LexicalEmbedder()
        self._embedder.fit(split.texts)
        self._vectors = self._embedder.embed(split.texts).astype(np.float32)

    def best(self, document: list[int], owner: int | None = None) -> list[list[int]]:
        """Numbers of the best references for each piece of a document, best first. Left out: those of the
        document itself (``owner``), and those that overlap with it by more than 90 % (eq. 6)."""
        bos = len(self._model.bos)
        starts = range(-bos, len(document), PIECE)
        pieces = [document[max(start, 0) : start + PIECE] for start in starts]
        queries = self._embedder.embed_queries(self._model.tokenizer.batch_decode(pieces))
        order = np.argsort(-(queries @ self._vectors.T), axis=1, kind="stable")[:, :CANDIDATES]
        return [
            [
                int(n)
                for n in row
                if self._split.owners[n] != owner
                and not overlaps(document, self._split.references[n], MOST_OVERLAP)
            ]
            for row in order
        ]
