"""How many centroids stand for few training vectors, counted again by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from m3build.codec.codec import Codec
from m3build.codec.members import FEW, few_members


@pytest.mark.parametrize("spec", ["PQ4x7", "Residual2x7,PQ4x3", "Residual2x7,SQ8", "RR8,PQ2x7"])
def test_centroids_with_few_members_are_those_that_few_vectors_are_nearest_to(
    spec: str, memories: Callable[..., tuple[np.ndarray, ...]], trained: Callable[..., Codec]
) -> None:
    keys, values, positions = memories(60, 16)
    codec = trained(spec)
    sizes: list[int] = []
    for side, vectors in enumerate((keys, values)):
        mean, scale = codec.arrays["mean"][side], codec.arrays["scale"][side]
        scaled = (vectors.astype(np.float64) - mean[:, None]) / scale[:, None, None]
        rest = scaled[positions != 255]
        if "transform" in codec.arrays:
            rest = rest @ codec.arrays["transform"][side].T + codec.arrays["transform_bias"][side]
        if "first_level" in codec.arrays:
            rest, found = quantized(rest, codec.arrays["first_level"][side])
            sizes += found
        if "product" in codec.arrays:
            sizes += quantized(rest, codec.arrays["product"][side])[1]
    assert few_members(codec, keys, values, positions) == {
        "centroids": len(sizes),
        "few_members": sum(0 < size < FEW for size in sizes),
    }
    assert any(0 < size < FEW for size in sizes), "the test must meet the case"


def quantized(x: np.ndarray, book: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """What a codebook (parts, centroids, width) leaves of x (n, parts · width), and how many vectors each of
    its centroids is nearest to."""
    parts, count, width = book.shape
    blocks = x.reshape(len(x), parts, width)
    distances = ((blocks[:, :, None] - book[None]) ** 2).sum(-1)
    nearest = distances.argmin(2)
    sizes = [int((nearest[:, part] == number).sum()) for part in range(parts) for number in range(count)]
    return (blocks - book[np.arange(parts), nearest]).reshape(len(x), -1), sizes


def test_a_codec_without_centroids_has_none_that_stand_for_few(
    memories: Callable[..., tuple[np.ndarray, ...]], trained: Callable[..., Codec]
) -> None:
    assert few_members(trained("SQ8"), *memories(60, 16)) == {}
