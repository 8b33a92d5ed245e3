"""Spherical k-means by blocks, beside FAISS's own clustering of vectors in memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.index.kmeans import Floats, spherical_kmeans
from m3build.index.library import load_faiss, one_thread

DIM, LISTS = 24, 20


def clustered(rows: int, seed: int) -> Floats:
    chance = np.random.default_rng(seed)
    centres = 4 * chance.standard_normal((30, DIM))
    found: Floats = (centres[chance.integers(0, 30, rows)] + chance.standard_normal((rows, DIM))).astype(
        np.float32
    )
    return found


def near(vectors: Floats, centroids: Floats) -> float:
    """How near vectors are to their nearest centroid: the mean of the inner products."""
    return float((vectors @ centroids.T).max(axis=1).mean())


def first_of(vectors: Floats, lists: int = LISTS) -> Floats:
    """Evenly spaced vectors, to begin with."""
    return vectors[[len(vectors) * at // lists for at in range(lists)]]


def ours(vectors: Floats, lists: int = LISTS, block: int = 100, iterations: int = 10) -> Floats:
    return spherical_kmeans(
        first_of(vectors, lists),
        lambda: (vectors[at : at + block] for at in range(0, len(vectors), block)),
        iterations,
    )


# No centroid loses all its vectors here: FAISS divides others by chance.
@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_centroids_are_those_of_faiss_from_the_same_beginning(seed: int) -> None:
    faiss, vectors = load_faiss(), clustered(2000, seed)
    clustering = faiss.Clustering(DIM, LISTS)
    clustering.niter, clustering.spherical = 10, True
    faiss.copy_array_to_vector(first_of(vectors).ravel(), clustering.centroids)
    with one_thread():
        clustering.train(vectors, faiss.IndexFlatIP(DIM))
    theirs = faiss.vector_to_array(clustering.centroids).reshape(LISTS, DIM)
    found = ours(vectors)
    assert np.abs(found - theirs).max() < 1e-4
    assert near(vectors, found) > 1.1 * near(vectors, ours(vectors, iterations=0))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8))
def test_no_iteration_takes_vectors_further_from_their_centroids(seed: int, lists: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((60, DIM)).astype(np.float32)
    steps = [near(vectors, ours(vectors, lists, 13, iterations)) for iterations in range(6)]
    assert all(later >= earlier - 1e-4 for earlier, later in pairwise(steps))


def test_centroids_that_lose_all_vectors_divide_the_largest_cluster() -> None:
    # Three directions only, many times each: most of eight centroids begin at the same place as another.
    directions = np.random.default_rng(0).standard_normal((3, DIM)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = np.repeat(directions, [40, 30, 10], axis=0)
    found = ours(vectors, 8)
    assert len(np.unique(found, axis=0)) > 3
    assert near(vectors, found) == pytest.approx(1, abs=1e-3)


def test_zeros_are_clustered_in_peace() -> None:
    found = ours(np.zeros((50, DIM), np.float32), 4)
    assert np.array_equal(found, np.zeros((4, DIM), np.float32))
