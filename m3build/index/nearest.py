"""The nearest of some centroids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m3build.index.library import load_faiss

Floats = npt.NDArray[np.float32]

# So few at once, since FAISS keeps several times k scores of each.
_BLOCK_ROWS = 64


def nearest_centroids(centroids: Floats, vectors: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Inner products with the ``k`` nearest of ``centroids`` (lists, dim), best first, and which they are,
    both (n, k), for vectors float32 (n, dim). What FAISS's flat index finds, which would hold a copy of
    the centroids."""
    faiss = load_faiss()

    scores = np.empty((len(vectors), k), np.float32)
    which = np.empty((len(vectors), k), np.int64)
    for first in range(0, len(vectors), _BLOCK_ROWS):
        here = slice(first, first + _BLOCK_ROWS)
        scores[here], which[here] = faiss.knn(vectors[here], centroids, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, which
