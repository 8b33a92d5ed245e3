"""k-means of the first level."""

from __future__ import annotations

import faiss
import numpy as np
import torch

from m3build.codec.kmeans import kmeans

CPU = torch.device("cpu")


def test_it_is_as_good_as_faiss():
    x = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)
    ours = kmeans(x, 100, 10, 1, CPU)
    theirs = faiss.Kmeans(8, 100, niter=10, seed=1, max_points_per_centroid=1000)
    theirs.train(x)
    errors = [faiss.knn(x, c, 1)[0].mean() for c in (ours, theirs.centroids)]
    assert errors[0] < 1.02 * errors[1]


def test_the_same_sample_gives_the_same_bytes_on_one_and_two_threads():
    x = np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(kmeans(x, 128, 4, 1, CPU).tobytes())
    torch.set_num_threads(before)
    assert results[0] == results[1]


def test_as_many_centroids_as_vectors_are_the_vectors():
    x = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    assert sorted(map(tuple, kmeans(x, 70, 3, 1, CPU))) == sorted(map(tuple, x))


def test_a_cluster_left_without_members_is_refilled():
    x = np.repeat(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 9.0]], np.float32), 50, axis=0)
    x += np.random.default_rng(0).standard_normal(x.shape).astype(np.float32) * 1e-3
    centroids = kmeans(x, 16, 10, 1, CPU)
    assert np.isfinite(centroids).all()
    assert len(np.unique(faiss.knn(x, centroids, 1)[1])) > 8


def test_fewer_distinct_vectors_than_centroids_do_no_harm():
    x = np.tile(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), (50, 1))
    assert np.isfinite(kmeans(x, 32, 5, 1, CPU)).all()
