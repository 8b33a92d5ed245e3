"""Losses on held-out documents, with and without memory, on the same tokens.

Contexts begin a reference's length into each document, or further, so that there is an earlier part for
memory to hold. Conditions:

- ``plain``: the context alone, as the model was made to run; ``bos``: after the reference BOS, no memory;
- ``earlier``: memories of the document's own text before the context; ``other``: another document's;
- ``retrieved``: each query chunk reads the five best references of training documents for the chunk before
  it; ``random``: as many random ones;
- ``passage``: each chunk reads one reference that holds the chunk itself (no honest use: what copying from
  memory can do at most);
- ``text``: the earlier text in the context instead of in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from random import Random

import torch

from examples.teach_memory.batches import earlier_references, padded
from examples.teach_memory.corpus import PIECE, Retrieval, Split
from examples.teach_memory.memory_pass import IGNORED, Batch, token_losses
from m3build.evaluation.bootstrap import Interval, mean_per_token
from m3build.model.causal import CausalModel

CONDITIONS = ("plain", "bos", "earlier", "other", "retrieved", "random", "passage", "text")
WITHOUT = ("plain", "bos")
CONTROLS = (("earlier", "other"), ("retrieved", "random"))
ROWS = 16


class HeldOut:
    """The held-out documents that are long enough, at most ``most``, and what their chunks read. Contexts
    of ``context`` tokens begin at token ``start``, by default a reference's length."""

    def __init__(
        self,
        model: CausalModel,
        split: Split,
        retrieval: Retrieval,
        context: int,
        most: int | None = None,
        start: int | None = None,
    ) -> None:
        self._model, self._split, self._retrieval, self._context = model, split, retrieval, context
        self._start = (start or model.shape.reference_tokens) // PIECE * PIECE
        enough = self._start + PIECE
        self.documents = [ids for ids in split.held_out if len(ids) >= enough][:most]

    @cached_property
    def _found(self) -> list[list[list[int]]]:
        """For each document, what all but the last chunk of its context retrieve."""
        first, chunks = self._start // PIECE, -(-self._context // PIECE)
        within = slice(first, first + chunks - 1)
        return [self._retrieval.best(document, within) for document in self.documents]

    def losses(self, condition: str) -> tuple[list[float], list[int]]:
        """Sum of losses (nats) and number of tokens of each document in a condition."""
        sums: list[float] = []
        counts: list[int] = []
        for first in range(0, len(self.documents), ROWS):
            batch = self._batch(condition, range(first, min(first + ROWS, len(self.documents))))
            with torch.no_grad():
                losses = token_losses(self._model, batch)
            sums.extend(losses.double().sum(1).tolist())
            counts.extend((batch.labels[:, 1:] != IGNORED).sum(1).tolist())
        return sums, counts

    def means(self, conditions: Sequence[str]) -> dict[str, float]:
        """Mean loss of each condition, in nats a token."""
        found = {condition: self.losses(condition) for condition in conditions}
        return {name: sum(sums) / max(1, sum(counts)) for name, (sums, counts) in found.items()}

    def report(self, conditions: Sequence[str] = CONDITIONS) -> dict[str, dict[str, float | None]]:
        """Mean losses, and gains over the better of the two conditions without memory, with 95 % intervals
        over documents; of ``earlier`` and ``retrieved`` also over their controls."""
        losses = {condition: self.losses(condition) for condition in conditions}
        counts = losses["plain"][1]
        found = {name: mean_per_token(sums, counts) for name, (sums, _) in losses.items()}
        best = min(WITHOUT, key=lambda name: found[name].mean)

        def gain(name: str, over: str) -> Interval:
            pairs = zip(losses[name][0], losses[over][0], strict=True)
            return mean_per_token([theirs - own for own, theirs in pairs], counts)

        for name in conditions:
            if name not in WITHOUT:
                found[f"gain: {name}"] = gain(name, best)
        for name, control in CONTROLS:
            if name in losses and control in losses:
                found[f"gain: {name} over {control}"] = gain(name, control)
        return {name: {**interval.to_json(), "documents": len(counts)} for name, interval in found.items()}

    def _batch(self, condition: str, numbers: Sequence[int]) -> Batch:
        opening = list(self._model.bos)
        # The earlier text, where it stands in the context, does not count.
        first = 0 if condition == "text" else self._start
        end = self._start + self._context - len(opening)
        ids, labels = padded([opening + self.documents[number][first:end] for number in numbers])
        labels[:, : len(opening) + self._start - first] = IGNORED
        references: dict[tuple[int, ...], int] = {}
        chunks = range(-(-self._context // PIECE))
        reads = [
            [
                [
                    references.setdefault(tuple(of), len(references))
                    for of in self._read(condition, number, chunk)
                ]
                for chunk in chunks
            ]
            for number in numbers
        ]
        most = max(1, *(len(read) for row in reads for read in row))
        table = torch.tensor([[read + [-1] * (most - len(read)) for read in row] for row in reads])
        return Batch(ids, labels, list(references), table, plain=condition in ("plain", "text"))

    def _read(self, condition: str, number: int, chunk: int) -> Sequence[Sequence[int]]:
        """The references that a query chunk of a document's context reads."""
        size, document = self._model.shape.reference_tokens, self.documents[number]
        match condition:
            case "earlier":
                return earlier_references(document, self._start, size)
            case "other":
                other = self.documents[(number + 1) % len(self.documents)]
                return earlier_references(other, self._start, size)
            case "passage":
                first = self._start + chunk * PIECE - size // 4
                return [document[first : first + size]] if first < len(document) else []
            case "retrieved" | "random" if 0 < chunk <= len(self._found[number]):
                best = self._found[number][chunk - 1][: self._model.shape.references]
                if condition == "random":
                    every = range(len(self._split.references))
                    best = Random(f"{number}/{chunk}").sample(every, k=len(best))
                return [self._split.references[n] for n in best]
        return []
