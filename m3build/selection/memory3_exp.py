"""The faster variant that the authors used and later called unnecessary (Memory³ §3.3): no normalization by
query.

    w_j = Σ_g Σ_i exp( q_{g,i} · k_j · scale )

exp overflows float32 at 88, which real logits reach, so the scores are log w_j, with each column's largest
logit taken out before: the same ranking, and no column over- or underflows. (Sums that differ by less than
float32 resolves in their logarithm count as equal, and the earlier token is kept.)
"""

from __future__ import annotations

from typing import ClassVar

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References, Selector
from m3build.selection.logits import by_blocks, own_tokens, restore, sum_over_queries


class Memory3Exp(Selector):
    """Sum of exponentials of the logits received, unmasked and without positions; scores are its
    logarithm."""

    name: ClassVar[str] = "memory3-exp"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        query, key, mask = own_tokens(layer, references)

        def received(logits: torch.Tensor, part: slice) -> torch.Tensor:
            most = logits.amax(dim=-2, keepdim=True)
            total = sum_over_queries(logits.sub_(most).exp_(), mask[part])
            return total.log() + most.squeeze(-2)

        closed = ~mask.repeat(1, layer.group)[:, :, None].expand(-1, -1, mask.shape[-1])
        return restore(by_blocks(query, key, layer.scaling, layer.softcap, closed, received), references)
