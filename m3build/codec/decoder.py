"""Decoding where the memories are read: torch on any device, by table look-ups.

The numbers are those of ``Codec.decode_rows`` within float32 rounding; what differs is the order of the work.
The codebooks of all codebook numbers lie in one table on the device, and each vector's codebook is part of
its index, so that a batch is a handful of operations whatever the codec's scope: kernel launches, not
arithmetic, are what decoding a few dozen memories costs on a GPU. Vectors go through it head by head, so
that the transform is one batched matrix product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import embedding

from m3build.codec.codec import Codec
from m3build.codec.spec import SCALAR_BITS
from m3build_formats.errors import UsageError
from m3build_formats.layout import UNUSED_SLOT


def usable_device(device: torch.device | str) -> torch.device:
    """A device by its full name: "cuda" becomes "cuda:0" or whichever is current. Raises UsageError for one
    that is not there."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(device)!r} cannot be used: {reason}") from error


class TorchDecoder:
    """Decodes code rows with one codec on one device, where its codebooks are kept. Read-only after
    construction; threads may share it."""

    def __init__(self, codec: Codec, device: torch.device | str) -> None:
        """Raises UsageError for a device that is not there."""
        self.codec, self.device = codec, usable_device(device)
        spec, numbers = codec.spec, torch.from_numpy(codec.codebooks)
        # (kind, head, slot) → place of its code in a row.
        self._places = self._on_device(codec.places).flatten()
        if not spec.is_trained:
            return
        # (kind, head, 1, 1) → codebook.
        self._books = numbers[:, :, None, None].to(self.device)
        self._mean = self._array("mean")[:, :, None, :]
        self._scale = self._array("scale")[:, :, None, None]
        if spec.transform:
            # Heads in a row that share a codebook are one group: all of them, the keys' or one head.
            groups = {"all": [0], "kind": [0, 1]}.get(codec.scope) or numbers.flatten().tolist()
            self._transform = self._array("transform")[groups]
            self._transform_bias = self._array("transform_bias")[groups][:, None, :]
        if spec.first_level_bits:
            self._first_level = _Tables(self._array("first_level"), spec.first_level_bits)
        if spec.fine == "PQ":
            self._product = _Tables(self._array("product"), spec.pq_bits)
        elif spec.fine != "SQfp16":
            ranges = self._array("scalar_range")[self._books[:, :, 0, 0]]
            self._low, self._width = ranges[:, :, 0, None, :], ranges[:, :, 1, None, :]
            self._steps = _BitNumbers(spec.code_dim(codec.head_dim), SCALAR_BITS[spec.fine], self.device)

    def decode_rows(
        self,
        codes: torch.Tensor,
        positions: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Code rows (n, row_bytes) uint8 → keys and values, each (n, N_heads, slots, head_dim) of ``dtype``,
        contiguous; computed in float32. All on the decoder's device.

        With ``positions`` (n, N_heads, slots) uint8, the vectors of unused slots (255) are zero; without,
        they are what zero bytes decode to.
        """
        codec = self.codec
        n, heads, slots = len(codes), len(codec.heads), codec.slots
        vectors = codes.reshape(n, 2 * heads * slots, codec.bytes_per_vector)
        by_head = vectors[:, self._places].view(n, 2, heads, slots, codec.bytes_per_vector)
        decoded = self._decode(by_head.permute(1, 2, 0, 3, 4).flatten(2, 3))
        out = torch.empty(2, n, heads, slots, codec.head_dim, dtype=dtype, device=self.device)
        out.copy_(decoded.view(2, heads, n, slots, codec.head_dim).permute(0, 2, 1, 3, 4))
        if positions is not None:
            out.masked_fill_((positions == UNUSED_SLOT)[None, ..., None], 0)
        return out[0], out[1]

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (2, N_heads, m, bytes) of kind and head → (2, N_heads, m, head_dim) float32."""
        spec = self.codec.spec
        if not spec.is_trained:
            return codes.contiguous().view(torch.bfloat16).float()
        split = spec.first_level_bytes()
        fine = codes[..., split:]
        if spec.fine == "PQ":
            y = self._product.look_up(fine, self._books)
        elif spec.fine == "SQfp16":
            y = fine.contiguous().view(torch.float16).float()
        else:
            fraction = (self._steps.unpack(fine) + 0.5) / ((1 << SCALAR_BITS[spec.fine]) - 1)
            y = self._low + fraction * self._width
        if spec.first_level_bits:
            y = self._first_level.look_up(codes[..., :split], self._books) + y
        if spec.transform:
            of_each = y.shape[0] * y.shape[1] * y.shape[2] // len(self._transform)
            grouped = y.view(len(self._transform), of_each, y.shape[3]) - self._transform_bias
            y = torch.bmm(grouped, self._transform).view(*y.shape[:3], self.codec.head_dim)
        return y * self._scale + self._mean

    def _array(self, name: str) -> torch.Tensor:
        return self._on_device(self.codec.arrays[name])

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        # A copy: arrays of a bank are read-only views of a memory map, which torch warns about.
        return torch.from_numpy(np.array(array)).to(self.device)


class _Tables:
    """Codebooks (codebooks, parts, 2^bits, width) float32 of vectors that are cut into parts, as one
    table."""

    def __init__(self, books: torch.Tensor, bits: int) -> None:
        _, self._parts, self._size, width = books.shape
        self._table = books.reshape(-1, width)
        self._numbers = _BitNumbers(self._parts, bits, books.device)
        self._starts = torch.arange(self._parts, device=books.device) * self._size

    def look_up(self, packed: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
        """Codes (..., bytes) uint8 and codebook numbers (..., 1) → vectors (..., parts · width) float32."""
        first = books * (self._parts * self._size) + self._starts
        return embedding(self._numbers.unpack(packed) + first, self._table).flatten(-2)


class _BitNumbers:
    """Reads ``count`` numbers of ``bits`` ≤ 16 bits from packed codes (bits.py says how they lie there)."""

    def __init__(self, count: int, bits: int, device: torch.device) -> None:
        first = torch.arange(count, device=device) * bits
        # A number touches three bytes at most. Where it ends earlier the rest is masked off, so it does not
        # matter which bytes stand in for those behind the end.
        last = (count * bits + 7) // 8 - 1
        self._bytes = ((first // 8)[:, None] + torch.arange(3, device=device)).clamp(max=last).flatten()
        self._shift = (first % 8).to(torch.int32)
        self._bits = bits

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Bytes (..., packed_bytes) uint8 → numbers (..., count) int32, all below 2^bits."""
        if self._bits == 8:
            return packed.to(torch.int32)
        three = packed.index_select(-1, self._bytes).to(torch.int32)
        three = three.view(*packed.shape[:-1], len(self._shift), 3)
        together = three[..., 0] | (three[..., 1] << 8) | (three[..., 2] << 16)
        return (together >> self._shift) & ((1 << self._bits) - 1)
