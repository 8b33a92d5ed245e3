"""Lloyd's k-means for the large first-level codebooks, with the exact and fast assignment of nearest.py.

FAISS trains the rest of it; but its k-means spends nearly all of its time in assignments, at half the speed
of nearest.py on a CPU with AVX2 and further behind where bfloat16 products or a GPU are there, and two
codebooks of 2^14 centroids dominate a codec's training. The method is the same: centroids start as random
members of the sample, and one that loses all members splits the largest cluster.

Since assignments are exact and sums are float64 in a fixed order, the result depends on the sample and the
seed only, not on threads or device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from m3build.codec.nearest import NearestCentroid

_SPLIT = np.float32(1 / 1024)


def kmeans(
    x: npt.NDArray[np.float32], count: int, iterations: int, seed: int, device: torch.device
) -> npt.NDArray[np.float32]:
    """Centroids (count, d) float32 of the sample x (n, d) float32, n ≥ count; assignments run on
    ``device``.
    """
    # RandomState's stream is frozen across numpy versions, a Generator's is not
    centroids = x[np.sort(np.random.RandomState(seed).permutation(len(x))[:count])].copy()
    sample = torch.from_numpy(x).to(device)
    columns = np.ascontiguousarray(x.T)
    for _ in range(iterations):
        nearest = NearestCentroid(torch.from_numpy(centroids), device).assign(sample).cpu().numpy()
        sizes = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, weights=column, minlength=count) for column in columns], 1)
        centroids = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
        _refill(centroids, sizes)
    return centroids


def _refill(centroids: npt.NDArray[np.float32], sizes: npt.NDArray[np.int64]) -> None:
    """Put each centroid without members beside that of a largest cluster, and move the two apart; in
    place.
    """
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return
    largest = np.argsort(-sizes, kind="stable")
    signs = np.where(np.arange(centroids.shape[1]) % 2 == 0, _SPLIT, -_SPLIT)
    for place, source in zip(empty, largest, strict=False):
        if sizes[source] < 2:
            break
        centroids[place] = centroids[source] * (1 + signs)
        centroids[source] = centroids[source] * (1 - signs)
