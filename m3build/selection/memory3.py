"""The rule of the paper (Memory³ §3.3): keep the tokens that receive the most attention, from weights with no
causal mask and no position encoding.

    w_j = Σ_g Σ_i softmax_j( q_{g,i} · k_j · scale )

i and j run over the reference's own tokens, g over the query heads that share the key-value head; queries and
keys are those before RoPE. The softmax is float32.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References, Selector
from m3build.selection.logits import by_blocks, own_tokens, restore, sum_over_queries


class Memory3(Selector):
    """Attention received, unmasked and without positions."""

    name: ClassVar[str] = "memory3"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        query, key, mask = own_tokens(layer, references)

        def received(logits: torch.Tensor, part: slice) -> torch.Tensor:
            return sum_over_queries(torch.softmax(logits, dim=-1), mask[part])

        closed = ~mask[:, None, :]
        return restore(by_blocks(query, key, layer.scaling, layer.softcap, closed, received), references)
