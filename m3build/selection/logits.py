"""Attention logits among the tokens of a reference, the common ground of the rules that look at attention.

The logits of a batch are (B, Hq, T, T) and would be larger than everything else in the forward pass, so they
are walked through a few references at a time. Rows are independent, so how many at a time changes no score.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References

# Elements of one block of logits. On a CPU a block should stay in the cache between softmax and sum; a GPU
# wants large kernels.
CPU_BLOCK_ELEMENTS = 1 << 20
DEVICE_BLOCK_ELEMENTS = 1 << 27

Reduce = Callable[[torch.Tensor, slice], torch.Tensor]


def by_blocks(
    query: torch.Tensor, key: torch.Tensor, scaling: float, softcap: float | None, reduce: Reduce
) -> torch.Tensor:
    """Reduce the logits of queries (B, Hq, T, d) on keys (B, Hkv, T, d) to (B, Hkv, T) float32.

    ``reduce`` takes the float32 logits of some rows, (b, Hkv, G·T, T): the queries of the G heads that share
    a key-value head, one head after the other, against its keys; and the slice of the batch that these rows
    are. It may overwrite them.

    The logits are float32 products of the captured vectors, scaled and, if the model has a soft-cap, capped.
    (In bfloat16 a product of two captured numbers is exact in float32, so only the order of the sum separates
    them from a float64 computation.)
    """
    rows, query_heads, tokens, _ = query.shape
    kv_heads = key.shape[1]
    group = query_heads // kv_heads
    limit = CPU_BLOCK_ELEMENTS if query.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    step = max(1, limit // (query_heads * tokens * tokens))
    reduced = []
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        some = query[part].float().reshape(-1, kv_heads, group * tokens, query.shape[-1])
        logits = torch.matmul(some * scaling, key[part].float().transpose(-1, -2))
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        reduced.append(reduce(logits, part))
    return torch.cat(reduced)


def forbid(closed: torch.Tensor) -> torch.Tensor:
    """What to add to float32 logits: the most negative number where ``closed``, nothing (exactly) elsewhere.

    Adding is several times faster on a CPU than filling under a mask that is broadcast.
    """
    return torch.zeros(closed.shape, device=closed.device).masked_fill_(
        closed, torch.finfo(torch.float32).min
    )


def own_tokens(
    layer: LayerCapture, references: References
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query and key before RoPE and mask (B, R) without the columns of the reference BOS.

    Cutting it off here saves its logits and keeps it out as query and as key.
    """
    first = references.first
    return layer.query[:, :, first:], layer.key[:, :, first:], references.mask[:, first:]


def restore(scores: torch.Tensor, references: References) -> torch.Tensor:
    """Scores (B, H, R) back to (B, H, T): zeros for the columns that :func:`own_tokens` cut off."""
    return torch.nn.functional.pad(scores, (references.first, 0))
