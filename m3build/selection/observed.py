"""Attention received as the model computed it: causal, with RoPE, over all that stands before, the reference
BOS included.

Early tokens are seen by more queries than late ones, so this rule leans to the beginning of a reference; it
is here for comparison.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References, Selector
from m3build.selection.logits import by_blocks, sum_over_queries


class Observed(Selector):
    """``w_j = Σ_g Σ_i`` causal attention of the reference's token i to token j, after RoPE, within the
    layer's sliding window."""

    name: ClassVar[str] = "observed"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        mask = references.mask
        places = torch.arange(mask.shape[-1], device=layer.key.device)
        distance = places[:, None] - places[None, :]
        closed = distance < 0
        if layer.sliding_window is not None:
            closed |= distance >= layer.sliding_window

        def received(logits: torch.Tensor, part: slice) -> torch.Tensor:
            return sum_over_queries(torch.softmax(logits, dim=-1), mask[part])

        return by_blocks(
            layer.rotated_query,
            layer.rotated_key,
            layer.scaling,
            layer.softcap,
            closed.repeat(layer.group, 1)[None],
            received,
        )
