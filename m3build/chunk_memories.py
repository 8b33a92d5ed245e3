"""Which memories each query chunk reads, as the arrays that attention takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What the query chunks of a batch read in one layer: ``keys`` (after RoPE) and ``values`` (B, C, Hkv, N,
    d), ``mask`` bool (B, C, Hkv, N), True where a slot holds a token. N is references a chunk times slots."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor


def chunk_memories(
    layers: Sequence[int],
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    references: torch.Tensor,
) -> Mapping[int, LayerMemory]:
    """Memories by layer for ``references`` int64 (B, C, R): for each query chunk the numbers of those it
    reads, −1 for none.

    ``keys`` and ``values`` (n, L, Hkv, S, d) and ``mask`` bool (n, L, Hkv, S) hold n memories over the memory
    ``layers``. Differentiable in keys and values.
    """
    if not len(keys) or not references.numel():
        return {}
    rows, chunks, each = references.shape
    flat = references.clamp(min=0).flatten()

    def joined(of: torch.Tensor) -> torch.Tensor:
        """(n, Hkv, S, …) → (B, C, Hkv, R·S, …)."""
        taken = of.index_select(0, flat)
        return taken.view(rows, chunks, each, *taken.shape[1:]).transpose(2, 3).flatten(3, 4)

    there = (references >= 0)[:, :, :, None, None]
    found: dict[int, LayerMemory] = {}
    for number, layer in enumerate(layers):
        used = mask[:, number].index_select(0, flat).view(rows, chunks, each, *mask.shape[2:]) & there
        found[layer] = LayerMemory(
            joined(keys[:, number]), joined(values[:, number]), used.transpose(2, 3).flatten(3, 4)
        )
    return found
