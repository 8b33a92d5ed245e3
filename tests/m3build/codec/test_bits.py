"""Packing of codes: a law, and FAISS's own order of bits."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3build.codec.bits import pack, packed_bytes, unpack


@given(st.integers(1, 16), st.integers(1, 12), st.integers(0, 2**31))
def test_unpacking_gives_back_what_was_packed(bits, count, seed):
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, (count, 5))
    out = torch.empty(5, packed_bytes(count, bits), dtype=torch.uint8)
    pack(torch.from_numpy(numbers), bits, out)
    assert (unpack(out.numpy(), count, bits) == numbers.T).all()
    # the definition, bit by bit
    flat = np.unpackbits(out.numpy(), axis=1, bitorder="little")
    for j in range(count):
        assert (flat[:, j * bits : (j + 1) * bits] @ (1 << np.arange(bits)) == numbers[j]).all()
    assert not flat[:, count * bits :].any()
