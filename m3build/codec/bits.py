"""Codes as bits: b-bit numbers without gaps, least significant bit first, as FAISS packs them.

Number j of a code takes bits j·b … j·b + b − 1; bit i is bit i mod 8 (counted from the least significant) of
byte i div 8; the last byte is filled up with zeros. One rule serves the product quantizer, the scalar
quantizers and the pair of first-level indices.

``unpack`` is numpy, for readers without torch; ``pack`` is written in operators that torch and numpy share,
so it runs where the codes are made. Both walk over the few bytes of a code and work on all codes at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` numbers of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(numbers: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Write numbers (count, n), int32 or int64, each below 2^bits ≤ 2^16, into ``out`` (n, packed_bytes)
    uint8.
    """
    count = numbers.shape[0]
    for byte in range(packed_bytes(count, bits)):
        first = byte * 8 // bits
        total = numbers[first] >> (byte * 8 - first * bits)
        for j in range(first + 1, min(count, (byte * 8 + 7) // bits + 1)):
            total = total | (numbers[j] << (j * bits - byte * 8))
        out[:, byte] = total & 255


def unpack(packed: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.int32]:
    """Bytes (n, packed_bytes) uint8 → numbers (n, count) int32, all below 2^bits whatever the bytes are."""
    if bits == 8:
        return packed.astype(np.int32)
    numbers = np.empty((packed.shape[0], count), np.int32)
    for j in range(count):
        first, shift = divmod(j * bits, 8)
        last = (j * bits + bits - 1) // 8
        total = packed[:, first].astype(np.int32) >> shift
        for byte in range(first + 1, last + 1):
            total |= packed[:, byte].astype(np.int32) << (8 * (byte - first) - shift)
        numbers[:, j] = total & ((1 << bits) - 1)
    return numbers
