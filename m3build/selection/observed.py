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
from m3build.selection.logits import by_blocks, forbid


class Observed(Selector):
    """``w_j = Σ_g Σ_i`` causal attention of the reference's token i to token j, after RoPE, within the
    layer's sliding window."""

    name: ClassVar[str] = "observed"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        mask, group = references.mask, layer.group
        places = torch.arange(mask.shape[-1], device=layer.key.device)
        distance = places[:, None] - places[None, :]
        hidden = distance < 0
        if layer.sliding_window is not None:
            hidden |= distance >= layer.sliding_window
        closed = forbid(hidden).repeat(group, 1)

        def received(logits: torch.Tensor, part: slice) -> torch.Tensor:
            weights = torch.softmax(logits.add_(closed), dim=-1)
            queries = mask[part].repeat(1, group)[:, None, None, :].to(weights.dtype)
            return torch.matmul(queries, weights).squeeze(-2)

        return by_blocks(layer.rotated_query, layer.rotated_key, layer.scaling, layer.softcap, received)
