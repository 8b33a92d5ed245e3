"""Attention logits among the tokens of a reference, the common ground of the rules that look at attention.

The logits of a batch are (B, Hq, T, T) and would be larger than everything else in the forward pass, so they
are walked through a few references at a time. Rows are independent, so how many at a time changes no score.

Equal tokens must get equal scores to the last bit, since ties go to the earlier one, and ties are common: in
the first layer, without positions, two occurrences of a word have the same query and the same key. Matrix
products compute the columns at the edge of their tiles in another order than the rest, so the columns are
filled up to whole tiles here, and rules sum over queries by a matrix product of such width
(:func:`sum_over_queries`), never by ``sum``, whose order depends on the column.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References

# Elements of one block of logits. On a CPU a block should stay in the cache between softmax and sum; a GPU
# wants large kernels.
CPU_BLOCK_ELEMENTS = 1 << 19
DEVICE_BLOCK_ELEMENTS = 1 << 27
# Columns are filled up to a multiple of this: one AVX-512 register of float32, two of AVX2, four of NEON.
COLUMN_STEP = 16

Reduce = Callable[[torch.Tensor, slice], torch.Tensor]


def by_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    softcap: float | None,
    closed: torch.Tensor,
    reduce: Reduce,
) -> torch.Tensor:
    """Reduce the logits of queries (B, Hq, T, d) on keys (B, Hkv, T, d) to (B, Hkv, T) float32.

    ``reduce`` takes the float32 logits of some rows, (b, Hkv, G·T, columns): the queries of the G heads that
    share a key-value head, one head after the other, against its keys; and the slice of the batch that these
    rows are. It may overwrite them, and returns (b, Hkv, columns). ``closed`` (B or 1, G·T or 1, T) bool says
    which pairs take no part: their logits are the most negative number.

    The logits are float32 products of the captured vectors, scaled and, if the model has a soft-cap, capped.
    (In bfloat16 a product of two captured numbers is exact in float32, so only the order of the sum separates
    them from a float64 computation.)
    """
    rows, query_heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    group = query_heads // kv_heads
    filling = -tokens % COLUMN_STEP
    columns = tokens + filling
    # Adding is several times faster on a CPU than filling under a mask that is broadcast; adding zero is
    # exact.
    closed = torch.nn.functional.pad(closed, (0, filling), value=True)
    bias = torch.zeros(closed.shape, device=closed.device).masked_fill_(
        closed, torch.finfo(torch.float32).min
    )
    limit = CPU_BLOCK_ELEMENTS if query.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    step = max(1, limit // (query_heads * tokens * columns))
    reduced = []
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        some = query[part].float().reshape(-1, kv_heads, group * tokens, width) * scaling
        keys = torch.nn.functional.pad(key[part].float(), (0, 0, 0, filling))
        logits = torch.matmul(some, keys.transpose(-1, -2))
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        logits += (bias[part] if bias.shape[0] == rows else bias)[:, None]
        reduced.append(reduce(logits, part))
    return torch.cat(reduced)[..., :tokens]


def sum_over_queries(weights: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Σ over the queries of weights (b, Hkv, G·T, columns) where ``own`` (b, T) is True, for all G heads: (b,
    Hkv, columns)."""
    group = weights.shape[-2] // own.shape[-1]
    queries = own.repeat(1, group)[:, None, None, :].to(weights.dtype)
    return torch.matmul(queries.expand(-1, weights.shape[1], -1, -1), weights).squeeze(-2)


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
