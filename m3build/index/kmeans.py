"""Spherical k-means over vectors that are read a block at a time.

FAISS finds the nearest centroids. Its own ``Clustering`` wants all vectors in memory, where the sample of an
inverted index would be most of what fitting one takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from m3build.index.library import one_thread
from m3build.index.nearest import Floats, nearest_vectors

# By how much the two halves of a divided cluster differ at first.
_SHIFT = 1 / 1024


def spherical_kmeans(first: Floats, blocks: Callable[[], Iterable[Floats]], iterations: int) -> Floats:
    """Centroids of length one, float32 (k, dim), that ``iterations`` of Lloyd's algorithm reach from the
    vectors ``first`` (k, dim), by inner product.

    ``blocks`` gives all vectors, float32 (any, dim) each, as often as it is called. A cluster that loses all
    its vectors takes half of the largest. Same vectors, same bytes.
    """
    centroids = _normalized(first.copy())
    with one_thread():
        for _ in range(iterations):
            sums = np.zeros_like(centroids)
            counts = np.zeros(len(centroids), np.int64)
            for block in blocks():
                nearest = nearest_vectors(centroids, block, 1)[1][:, 0]
                order = np.argsort(nearest, kind="stable")
                found, begins, sizes = np.unique(nearest[order], return_index=True, return_counts=True)
                sums[found] += np.add.reduceat(block[order], begins, axis=0)
                counts[found] += sizes
            _divide_largest(sums, counts)
            centroids = _normalized(sums)
    return centroids


def _divide_largest(sums: Floats, counts: npt.NDArray[np.int64]) -> None:
    shift = np.where(np.arange(sums.shape[1]) % 2, -_SHIFT, _SHIFT).astype(np.float32)
    for empty in np.flatnonzero(counts == 0).tolist():
        largest = int(counts.argmax())
        sums[empty] = sums[largest] * (1 + shift)
        sums[largest] *= 1 - shift
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]


def _normalized(vectors: Floats) -> Floats:
    """The same vectors, divided by their lengths in place."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, 1)
    return vectors
