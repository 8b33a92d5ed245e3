"""The nearest of some vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m3build.index.library import load_faiss

Floats = npt.NDArray[np.float32]

# So few at once, since FAISS keeps several times k scores of each.
_BLOCK_ROWS = 64


def nearest_vectors(vectors: Floats, queries: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Inner products with the ``k`` nearest of ``vectors``, float32 (any, dim), best first, and which they
    are, both (n, k), for ``queries`` float32 (n, dim). What FAISS's flat index finds, which would hold a copy
    of the vectors."""
    faiss = load_faiss()

    scores = np.empty((len(queries), k), np.float32)
    which = np.empty((len(queries), k), np.int64)
    for first in range(0, len(queries), _BLOCK_ROWS):
        here = slice(first, first + _BLOCK_ROWS)
        scores[here], which[here] = faiss.knn(queries[here], vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, which
