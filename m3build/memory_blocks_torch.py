"""Decoded memories of some rows as dense torch tensors, decoded on the device where they are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from m3build.codec.decoder import TorchDecoder
from m3build.memory_blocks import Block, MemoryShape, Rows
from m3build_formats.layout import UNUSED_SLOT


class TorchBlocks:
    """Blocks of torch tensors of one dtype on a decoder's device."""

    def __init__(self, decoder: TorchDecoder, shape: MemoryShape, dtype: torch.dtype) -> None:
        self._decoder, self._shape, self._dtype = decoder, shape, dtype
        self._cells = torch.from_numpy(shape.cells).to(decoder.device)

    def decode(self, rows: Rows) -> Block[torch.Tensor]:
        codes, positions = self._shape.split(torch.from_numpy(rows).to(self._decoder.device))
        keys, values = self._decoder.decode_rows(codes, positions, self._dtype)
        return Block(self._dense(keys, 0), self._dense(values, 0), self._dense(positions, UNUSED_SLOT))

    def empty(self, n: int) -> Block[torch.Tensor]:
        vectors = (n, *self._shape.dense)
        device = self._decoder.device
        return Block(
            torch.empty(vectors, dtype=self._dtype, device=device),
            torch.empty(vectors, dtype=self._dtype, device=device),
            torch.empty(vectors[:-1], dtype=torch.uint8, device=device),
        )

    def stack(self, ones: Sequence[Block[torch.Tensor]]) -> Block[torch.Tensor]:
        return Block(
            torch.stack([one.keys for one in ones]),
            torch.stack([one.values for one in ones]),
            torch.stack([one.positions for one in ones]),
        )

    def copy_of(self, block: Block[torch.Tensor], number: int) -> Block[torch.Tensor]:
        return Block(
            block.keys[number].clone(), block.values[number].clone(), block.positions[number].clone()
        )

    def _dense(self, compact: torch.Tensor, fill: int) -> torch.Tensor:
        """(n, N_heads, S, …) → (n, L, Hkv, S, …)."""
        layers, kv_heads, *_ = self._shape.dense
        if not self._shape.is_full:
            spread = compact.new_full((len(compact), layers * kv_heads, *compact.shape[2:]), fill)
            spread[:, self._cells] = compact
            compact = spread
        return compact.reshape(len(compact), layers, kv_heads, *compact.shape[2:])
