"""Batches of both stages. A batch follows from the seed and the number of its step alone, so that training
goes on after an interruption as if there had been none.

Stage 1, the warm-up, is ordinary training: on contexts of half the length at first, then of the full, at last
of four times the length too. Once the first part has taught some language, every second row is a passage
followed by its pieces in another order: copying within the context is what reading a memory is made of.
Contexts are cut from all documents in a row, each once before any comes again.

Stage 2 is training with memory (Memory³ §3.6). What a row reads is drawn by these shares:

- ``retrieved``: each query chunk reads what the chunk before it retrieved, and what the four before that did;
  a model that reads continuations (RETRO's) reads them in half of these rows;
- ``earlier``: memories of the document's own earlier text, which is no longer in the context;
- ``passage``: the same as retrieved, but the first reference of each chunk holds the chunk itself. It cannot
  happen in use, and teaches reading at once;
- ``nothing``: the reference BOS alone.

Later half of the rows also read references of other rows, until each query chunk reads five: of five
references in use one or two fit, and a model that has not met others is worse with them than without memory.

And every fifth step is one of stage 1, so that the model does not get worse at plain context: then a gain
with memory would be the memory format's and not the memory's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from random import Random

import numpy as np
import numpy.typing as npt
import torch

from examples.teach_memory.corpus import MOST_OVERLAP, PIECE, Retrieval, Split
from examples.teach_memory.memory_pass import IGNORED, Batch
from m3build.calibration import repeat_passages
from m3build.evaluation.overlap import overlaps
from m3build.model.causal import CausalModel

KINDS = ("retrieved", "earlier", "passage", "nothing")
# Until which share of the steps, how often each, and how many rows read strange references too: what surely
# helps comes first, what is read in use last.
SHARES = ((0.4, (0.35, 0.4, 0.15, 0.1), 0.0), (1.0, (0.65, 0.15, 0.1, 0.1), 0.5))
READ_BACK = 5
# How many of the rows that read what was retrieved do it as the model will, if it reads continuations: five
# references by the chunk before, each that is found followed by what its document goes on with.
IN_USE = 0.5
PLAIN_EVERY = 5
PIECE_SIZES = (8, 16, 32)
# Of the warm-up: until which share of its steps, lengths of contexts, and whether passages are repeated.
PHASES = ((0.35, (0.5,), False), (0.75, (1.0,), True), (1.0, (1.0, 4.0), True))
# Lengths of contexts with memory, in turn: what is read must fit far behind its reference too.
WITH_MEMORY = (1.0, 1.0, 4.0)


class Batches:
    """Makes batches of ``rows`` contexts of ``context`` tokens (BOS included), or of fewer and longer ones,
    for stages of so many steps. Without ``memory`` those of stage 2 are the same contexts with nothing to
    read: its control."""

    def __init__(
        self,
        model: CausalModel,
        split: Split,
        retrieval: Retrieval,
        rows: int,
        context: int,
        seed: int,
        warm_up_steps: int = 0,
        steps: int = 0,
        memory: bool = True,
    ) -> None:
        self._memory = memory
        self._model, self._split, self._retrieval = model, split, retrieval
        self._rows, self._context, self._seed = rows, context, seed
        self._warm_up_steps, self._steps = warm_up_steps, steps
        before = len(model.reference_bos) + model.shape.reference_tokens
        self._most = max(context, getattr(model.model.config, "max_position_embeddings", 0) - before)
        self._documents = np.flatnonzero(split.train.lengths > PIECE)
        # Long contexts with memory take long documents.
        longest = self._tokens((max(WITH_MEMORY),), 0)
        self._longer = np.flatnonzero(split.train.lengths > longest)
        self._lengths = WITH_MEMORY if len(self._longer) else (1.0,)

    def warm_up(self, step: int) -> Batch:
        """An ordinary batch, or every second row of it a repeated passage."""
        share = step / max(1, self._warm_up_steps)
        _, lengths, repeats = next(phase for phase in PHASES if share < phase[0] or phase is PHASES[-1])
        return self._plain(step, self._tokens(lengths, step), repeats)

    def _tokens(self, lengths: Sequence[float], step: int) -> int:
        """Tokens of each context of a step, by the lengths that take turns."""
        return min(int(self._context * lengths[step % len(lengths)]), self._most)

    def _plain(self, step: int, context: int, repeats: bool) -> Batch:
        """Contexts without memory, and repeated passages as every second of them."""
        rows = self._rows * self._context // context
        random = Random(f"{self._seed}/warm-up/{step}")
        generator = torch.Generator().manual_seed(random.getrandbits(32))
        opening = list(self._model.bos)
        train, tokens = self._split.train, len(self._split.train.ids)
        size = context - len(opening)
        # The rows of all steps, one after the other, go through all windows of the text.
        windows = max(1, tokens // size)
        made = []
        for row in range(rows):
            if repeats and row % 2:
                half = size // 2
                start = random.randrange(max(1, tokens - half))
                passage = torch.tensor([train.run(start, half, opening)])
                repeated = repeat_passages(passage, random.choice(PIECE_SIZES), generator)
                made.append(repeated.rows(opening)[0].tolist())
            else:
                times, number = divmod(step * rows + row, windows)
                order = order_of(self._seed, windows, times)
                start = int(order[number]) * size
                made.append(opening + train.run(start, size, opening))
        return Batch(*padded(made), plain=True)

    def with_memory(self, step: int) -> Batch:
        """A batch of stage 2."""
        context = self._tokens(self._lengths, step)
        if step % PLAIN_EVERY == PLAIN_EVERY - 1:
            return self._plain(self._warm_up_steps + step, context, repeats=True)
        random, reading = (Random(f"{self._seed}/{what}/{step}") for what in ("memory", "reading"))
        opening = list(self._model.bos)
        chunks = -(-context // PIECE)
        documents = self._longer if context > self._context else self._documents
        # References by their ids, each with its document: each is written once, whoever reads it.
        owners: dict[tuple[int, ...], int] = {}
        rows, reads, whose = [], [], []
        count = self._rows * self._context // context
        _, shares, strange = next(
            phase for phase in SHARES if step < phase[0] * self._steps or phase is SHARES[-1]
        )
        for kind in random.choices(KINDS, shares, k=count):
            number = int(random.choice(documents))
            document = self._split.train[number]
            # At least one piece of text is left to predict, and one to remember.
            start = random.randrange(kind == "earlier", max(2, len(document) // PIECE)) * PIECE
            rows.append(opening + document[start : start + context - len(opening)])
            if self._memory:
                read = self._read(kind, number, start, chunks, reading)
                for owner, ids in chain.from_iterable(read):
                    owners.setdefault(tuple(ids), owner)
                reads.append([[tuple(ids) for _, ids in references] for references in read])
                whose.append(number)
        if not self._memory:
            return Batch(*padded(rows), plain=True)
        for number, row in zip(whose, reads, strict=True):
            if reading.random() < strange:
                drawn = self._strange(number, owners, reading)
                for read in row:
                    read.extend([ids for ids in drawn if ids not in read][: READ_BACK - len(read)])
        most = max(1, *(len(read) for row in reads for read in row))
        at = {ids: place for place, ids in enumerate(owners)}
        table = [[[at[ids] for ids in read] + [-1] * (most - len(read)) for read in row] for row in reads]
        return Batch(*padded(rows), references=list(owners), reads=torch.tensor(table))

    def _strange(
        self, number: int, owners: Mapping[tuple[int, ...], int], random: Random
    ) -> list[tuple[int, ...]]:
        """Up to five of the batch's references that tell nothing of a document: they are of others, and do
        not overlap with it."""
        others = [ids for ids, owner in owners.items() if owner != number]
        document = self._split.train[number]
        drawn = random.sample(others, k=min(READ_BACK, len(others)))
        return [ids for ids in drawn if not overlaps(document, ids, MOST_OVERLAP)]

    def _read(
        self, kind: str, number: int, start: int, chunks: int, random: Random
    ) -> list[list[tuple[int, list[int]]]]:
        """The references that each query chunk of a context from ``start`` reads, each with the number of
        its document."""
        document = self._split.train[number]
        size = self._model.shape.reference_tokens
        if kind == "nothing":
            return [[]] * chunks
        if kind == "earlier":
            return [[(number, ids) for ids in earlier_references(document, start, size)]] * chunks
        first = start // PIECE
        found = self._retrieval.best(document, slice(first, first + chunks - 1), number)
        in_use = kind == "retrieved" and self._model.shape.continuations and random.random() < IN_USE
        read = []
        for chunk in range(chunks):
            before = found[max(0, chunk - READ_BACK) : chunk][::-1]
            if in_use:
                fitting = self._retrieval.continued(before[0], document)[:READ_BACK] if before else []
            else:
                fitting = [best[0] for best in before if best]
            references = [(self._split.owners[n], self._split.references[n]) for n in fitting]
            if kind == "passage":
                own = max(0, start + chunk * PIECE - random.randrange(size - PIECE + 1))
                passage = document[own : own + size]
                references = ([(number, passage)] if passage else []) + references[: READ_BACK - 1]
            read.append(references)
        return read


@lru_cache(maxsize=4)
def order_of(seed: int, windows: int, times: int) -> npt.NDArray[np.int64]:
    """The order in which the windows of a text are gone through for the so-many-th time."""
    return np.random.default_rng([seed, windows, times]).permutation(windows)


def earlier_references(document: list[int], start: int, size: int) -> list[list[int]]:
    """A document's text before ``start`` as references, at most five, the nearest first."""
    ends = range(start, 0, -size)[:READ_BACK]
    return [document[max(0, end - size) : end] for end in ends]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as ids and labels. Padding stands on the right, where causal attention does not see it."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = labels[row, : len(own)] = torch.tensor(own)
    return ids, labels
