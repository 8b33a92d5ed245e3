"""Exact nearest centroids, whatever the shortlist's number format and the company a vector is in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.codec.nearest import NearestCentroid, native_shortlist_dtype

CPU = torch.device("cpu")


def brute_force(x, c):
    return (torch.cdist(x.double(), c.double(), compute_mode="donot_use_mm_for_euclid_dist")).argmin(1)


def draw(n, count, dim, seed=0, spread=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator) * spread + shift
    return x, torch.randn(count, dim, generator=generator) * spread + shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("count", "dim", "spread", "shift"),
    [
        (5, 3, 1, 0),
        (64, 8, 1, 0),
        (65, 8, 1, 0),
        (300, 4, 1, 0),
        (1000, 20, 1, 0),
        (2048, 10, 1e-3, 0),
        (512, 8, 1, 100),
        (512, 8, 1e8, 0),
        (700, 1, 1, 0),
    ],
)
def test_the_nearest_centroid_is_that_of_float64_arithmetic(count, dim, spread, shift, dtype):
    x, c = draw(1500, count, dim, spread=spread, shift=shift)
    assert torch.equal(NearestCentroid(c, CPU, dtype).assign(x), brute_force(x, c))


def test_a_vectors_centroid_does_not_depend_on_its_batch():
    x, c = draw(3000, 512, 6)
    quantizer = NearestCentroid(c, CPU)
    whole = quantizer.assign(x)
    for size in (1, 7, 511, 1024):
        assert torch.equal(torch.cat([quantizer.assign(part) for part in x[:1100].split(size)]), whole[:1100])
    assert quantizer.assign(x[:0]).shape == (0,)


@pytest.mark.parametrize("count", [40, 400])
def test_of_equal_centroids_the_first_is_chosen(count):
    x, c = draw(200, count, 4)
    c = torch.cat([c, c, torch.zeros(3, 4)])
    x[5] = 0
    found = NearestCentroid(c, CPU).assign(x)
    assert int(found.max()) <= 2 * count
    assert not ((found >= count) & (found < 2 * count)).any()
    assert int(found[5]) == 2 * count


def test_all_centroids_equal_is_no_special_case():
    x, _ = draw(10, 1, 4)
    assert (NearestCentroid(torch.ones(300, 4), CPU, torch.bfloat16).assign(x) == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(65, 400), st.integers(1, 9), st.floats(-50, 50))
def test_small_differences_far_from_the_origin_are_told_apart(seed, count, dim, shift):
    rng = np.random.default_rng(seed)
    c = torch.from_numpy((rng.standard_normal((count, dim)) * 0.01 + shift).astype(np.float32))
    x = torch.from_numpy((rng.standard_normal((64, dim)) * 0.01 + shift).astype(np.float32))
    found = NearestCentroid(c, CPU, torch.bfloat16).assign(x)
    distance = (x.double()[:, None] - c.double()[None]).square().sum(2)
    assert torch.allclose(distance.gather(1, found[:, None])[:, 0], distance.amin(1), rtol=1e-6, atol=1e-12)


def test_bfloat16_is_used_only_where_the_processor_has_it():
    assert native_shortlist_dtype(CPU) in (torch.float32, torch.bfloat16)
    assert native_shortlist_dtype(torch.device("mps")) == torch.float32
