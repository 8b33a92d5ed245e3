"""The decoder on a device gives the vectors of ``Codec.decode_rows``, which agrees with FAISS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.codec.bits import pack, packed_bytes
from m3build.codec.codec import Codec, array_shapes
from m3build.codec.decoder import TorchDecoder, usable_device
from m3build.codec.rows import SCOPES, Scope
from m3build.codec.spec import parse_spec
from m3build_formats.errors import UsageError

SPECS = [
    "none",
    "SQ4",
    "SQ6",
    "SQ8",
    "SQfp16",
    "PQ4x1",
    "PQ2x8",
    "PQ3x11",
    "PQ4x12",
    "RR12,PQ4x5",
    "PCA8,SQ6",
    "OPQ4_8,PQ2x10",
    "Residual2x1,PQ1x3",
    "Residual2x5,SQfp16",
    "Residual2x9,SQ4",
    "OPQ3_12,Residual2x11,PQ4x10",
    "PCA6,Residual2x12,SQ8",
]
# Layers of unequal numbers of heads: a layer's codebook serves one head or two.
HEADS = ((0, 1), (2, 0), (2, 3), (5, 0))
HEAD_DIM, SLOTS = 12, 3


def random_codec(text: str, scope: Scope) -> Codec:
    random = np.random.default_rng(1)
    spec = parse_spec(text)
    arrays = {
        name: random.standard_normal(shape, np.float32)
        for name, shape in array_shapes(spec, scope, HEADS, HEAD_DIM).items()
    }
    if "scale" in arrays:
        arrays["scale"] = np.abs(arrays["scale"]) + np.float32(0.25)
    return Codec(spec, scope, HEADS, HEAD_DIM, SLOTS, arrays)


def random_rows(codec: Codec, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Any codes, and positions of which a third are of unused slots."""
    random = np.random.default_rng(2)
    width = codec.bytes_per_vector
    codes = random.integers(0, 256, (rows, codec.row_bytes // width, width), np.uint8)
    if codec.spec.fine in ("none", "SQfp16"):
        # Without the top bit of the exponent the floats are neither infinite nor so large that they drown
        # all else.
        codes[:, :, codec.spec.first_level_bytes() + 1 :: 2] &= 0xBF
    positions = random.integers(0, 128, (rows, len(HEADS), SLOTS), np.uint8)
    positions[random.random(positions.shape) < 0.3] = 255
    return codes.reshape(rows, -1), positions


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("text", SPECS)
def test_torch_decodes_what_numpy_decodes(text: str, scope: Scope) -> None:
    codec = random_codec(text, scope)
    codes, positions = random_rows(codec, 5)
    decoder = TorchDecoder(codec, "cpu")
    for given_positions in (positions, None):
        ours = decoder.decode_rows(
            torch.from_numpy(codes), None if given_positions is None else torch.from_numpy(given_positions)
        )
        for side, expected in zip(ours, codec.decode_rows(codes, given_positions), strict=True):
            assert side.is_contiguous()
            assert side.dtype == torch.float32
            np.testing.assert_allclose(side.numpy(), expected, rtol=2e-6, atol=2e-5)
    assert not ours[0].isnan().any()


@pytest.mark.parametrize("text", ["none", "OPQ3_12,Residual2x5,PQ4x5", "SQ8"])
def test_other_number_types_are_the_float32_vectors_rounded_once(text: str) -> None:
    codec = random_codec(text, "kind")
    codes, positions = (torch.from_numpy(array) for array in random_rows(codec, 4))
    decoder = TorchDecoder(codec, torch.device("cpu"))
    exact = decoder.decode_rows(codes, positions)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for side, full in zip(decoder.decode_rows(codes, positions, dtype), exact, strict=True):
            assert torch.equal(side, full.to(dtype))


def test_rows_that_are_a_view_of_wider_ones_decode_alike() -> None:
    codec = random_codec("Residual2x5,PQ4x5", "layer")
    codes, _ = random_rows(codec, 6)
    wider = torch.from_numpy(np.concatenate([codes, codes[:, :7]], 1))
    decoder = TorchDecoder(codec, "cpu")
    for one, other in zip(
        decoder.decode_rows(wider[::2, : codec.row_bytes]),
        decoder.decode_rows(torch.from_numpy(codes[::2].copy())),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_no_rows_decode_to_no_vectors() -> None:
    for text in ("none", "RR12,Residual2x5,PQ4x5", "SQ6"):
        codec = random_codec(text, "head")
        empty = torch.empty(0, codec.row_bytes, dtype=torch.uint8)
        keys, values = TorchDecoder(codec, "cpu").decode_rows(empty)
        assert keys.shape == values.shape == (0, len(HEADS), SLOTS, HEAD_DIM)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_numbers_of_any_width_are_read_back_as_they_were_packed(data: Any) -> None:
    bits = data.draw(st.integers(1, 16))
    count = data.draw(st.integers(1, 9))
    numbers = data.draw(
        st.lists(
            st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count), min_size=1, max_size=4
        )
    )
    packed = torch.zeros(len(numbers), packed_bytes(count, bits), dtype=torch.uint8)
    pack(torch.tensor(numbers).t(), bits, packed)
    # A product quantizer whose centroid j of block i is the number j itself gives the numbers back.
    spec = parse_spec(f"PQ{count}x{bits}")
    product = np.broadcast_to(
        np.arange(2**bits, dtype=np.float32)[None, None, :, None], (1, count, 2**bits, 1)
    )
    arrays = {
        "mean": np.zeros((2, 1, count), np.float32),
        "scale": np.ones((2, 1), np.float32),
        "product": product,
    }
    codec = Codec(spec, "all", ((0, 0),), count, 1, arrays)
    keys, values = TorchDecoder(codec, "cpu").decode_rows(packed.repeat(1, 2))
    assert keys[:, 0, 0].tolist() == values[:, 0, 0].tolist() == numbers


def test_a_device_that_is_not_there_is_a_usage_error() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    for device in ("abacus", "cuda:9999"):
        with pytest.raises(UsageError, match=device):
            TorchDecoder(random_codec("none", "all"), device)
