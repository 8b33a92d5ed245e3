"""What every selection rule is: scores for the tokens of a reference, and the one way in which scores become
kept positions.

Memory³ keeps, per memory layer and key-value head, the few tokens of a reference that matter most (§3.3). A
rule differs from another in its scores alone, so a rule is one class with one method in one file;
:mod:`m3build.selection` finds it by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from m3build.capture import LayerCapture
from m3build_formats.layout import UNUSED_SLOT


@dataclass(frozen=True, slots=True)
class References:
    """The rows of a batch as a rule sees them.

    ``mask`` (B, T) bool, on the model's device, is True on a reference's own tokens, which start at column
    ``first`` in every row and are contiguous: neither the reference BOS before them nor the padding after
    them takes part in a selection. ``token_ids`` (B, T) int64, on the CPU.
    """

    token_ids: torch.Tensor
    mask: torch.Tensor
    first: int


class Selector(ABC):
    """A rule that scores tokens. Instances hold no state that depends on data."""

    name: ClassVar[str]

    @abstractmethod
    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        """Scores float32 (B, Hkv, T), finite on the references' own tokens; higher is kept first. What stands
        elsewhere is ignored.

        A row's scores depend on nothing but that row."""

    def keep(self, layer: LayerCapture, references: References, slots: int) -> torch.Tensor:
        """Kept positions uint8 (B, Hkv, slots) of the ``slots`` best tokens of each head; see
        :func:`keep_best`."""
        return keep_best(self.scores(layer, references), references.mask, references.first, slots)


def keep_best(scores: torch.Tensor, mask: torch.Tensor, first: int, slots: int) -> torch.Tensor:
    """Positions uint8 (B, H, slots) of the highest scores (B, H, T) where ``mask`` (B, T) is True.

    Counted from column ``first``, where the references start; ascending, 255 in the slots of a reference that
    has fewer tokens. Of equal scores the earlier token is kept (a stable sort: torch's topk promises no
    order).
    """
    rows, heads, tokens = scores.shape
    masked = scores.masked_fill(~mask[:, None, :], -torch.inf)
    best = torch.sort(masked, dim=-1, descending=True, stable=True).indices[..., :slots]
    ranks = torch.arange(best.shape[-1], device=scores.device)
    unused = ranks >= mask.sum(dim=-1)[:, None, None]
    ascending = best.masked_fill(unused, tokens).sort(dim=-1).values
    positions = (ascending - first).masked_fill(ascending == tokens, UNUSED_SLOT)
    kept = torch.full((rows, heads, slots), UNUSED_SLOT, dtype=torch.uint8, device=scores.device)
    kept[..., : positions.shape[-1]] = positions.to(torch.uint8)
    return kept
