"""Repeated passages: a passage, then its pieces in another order.

The pieces come in another order so that where a token's earlier occurrence stands can be known from the
tokens alone: a head that looks back a fixed distance copies nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Repeats:
    """Rows of passages, each followed by its pieces in another order.

    ``passage`` int64 (B, P): the ids; ``source`` int64 (B, P): which token of the passage each token of the
    repetition is.
    """

    passage: torch.Tensor
    source: torch.Tensor

    @property
    def repetition(self) -> torch.Tensor:
        """The ids of the second half, int64 (B, P)."""
        return self.passage.gather(1, self.source)

    @property
    def copied(self) -> torch.Tensor:
        """bool (B, P): tokens of the repetition that follow on the token before as in the passage, which
        copying predicts."""
        return torch.nn.functional.pad(self.source[:, 1:] == self.source[:, :-1] + 1, (1, 0))

    def rows(self, bos: Sequence[int]) -> torch.Tensor:
        """int64 (B, len(bos) + 2·P): ``bos``, passage, repetition."""
        before = self.passage.new_tensor(bos).expand(len(self.passage), -1)
        return torch.cat([before, self.passage, self.repetition], dim=1)


def repeat_passages(passages: torch.Tensor, piece: int, generator: torch.Generator) -> Repeats:
    """Repeat passages int64 (B, P) in pieces of ``piece`` tokens (the last may be shorter), in an order that
    each row draws for itself."""
    rows, tokens = passages.shape
    order = torch.rand(rows, -(-tokens // piece), generator=generator).argsort(1)
    places = (order[:, :, None] * piece + torch.arange(piece)).flatten(1)
    kept = places[places < tokens].view(rows, tokens)
    return Repeats(passages, kept.to(passages.device))


def cut_passages(documents: Iterable[Sequence[int]], tokens: int, most: int) -> torch.Tensor:
    """Passages int64 (n, ``tokens``) of documents given as ids, at most ``most``: the beginnings of all
    documents first, then what follows them."""
    held = [list(document) for document in documents]
    found: list[list[int]] = []
    start = 0
    while len(found) < most and any(len(document) >= start + tokens for document in held):
        found.extend(document[start : start + tokens] for document in held if len(document) >= start + tokens)
        start += tokens
    return torch.tensor(found[:most], dtype=torch.int64).view(-1, tokens)


def random_passages(
    vocabulary: int, special: Iterable[int], tokens: int, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Passages int64 (``count``, ``tokens``) of tokens drawn evenly from the vocabulary without the
    ``special`` ones: no knowledge of language helps to predict them."""
    left_out = set(special)
    ordinary = torch.tensor([token for token in range(vocabulary) if token not in left_out])
    return ordinary[torch.randint(len(ordinary), (count, tokens), generator=generator)]
