"""Learning a codec's arrays from a sample of keys and values, with FAISS.

The stages are FAISS's (OPQMatrix, PCAMatrix, RandomRotationMatrix, ProductQuantizer, ScalarQuantizer; k-means
for the first level is in kmeans.py), put together as ``faiss.index_factory`` would, so that iterations, seeds
and limits are ours and nothing is printed: FAISS warns on standard output when a codebook gets under 39
vectors a centroid, here that is the caller's warning (presets.py). Nor does FAISS get
to reorder the centroids for polysemous search, on which its factory spends most of the training of small
codebooks.

On unit Gaussian vectors at 40 vectors a centroid, the error on fresh ones stops falling after 4 to 6
iterations of the first level.

Before FAISS sees a vector, the mean of its layer, kind and head is taken off and it is divided by their root
mean square, so that one codebook serves layers of unlike scale and keys with large biases. The statistics and
the sample depend on the order of the vectors given, which the caller fixes by drawing references by hash.

Determinism: two trainings on the same vectors give the same bytes. FAISS runs on one thread: OPQ's result was
seen to change in its last bits with the number of threads, and on a busy machine two threads took over ten
times as long as one, waiting for each other. kmeans.py, where most of the work is, uses all threads and does
not depend on their number.

OPQ looks for its rotation with codebooks of about one bit per dimension, near the rate of the codes that
follow, instead of FAISS's 8 bits a block, and with one k-means step per iteration instead of four: on
correlated vectors of 80 dimensions with an outlier channel, OPQ20_80,PQ8x8 then had an error of 0.06 after 3
s on one core; with 8 bits and four steps it was 0.16 after 20 iterations and 49 s (0.26 without a rotation).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from m3build.codec.codec import Codec, Floats
from m3build.codec.kmeans import kmeans
from m3build.codec.nearest import NearestCentroid
from m3build.codec.rows import Heads, Scope, codebook_count, codebook_numbers
from m3build.codec.spec import SCALAR_BITS, CodecSpec
from m3build_formats.errors import InputError

SEED = 20240701
FIRST_LEVEL_ITERATIONS = 8
PRODUCT_ITERATIONS = 20
OPQ_ITERATIONS = 50
OPQ_SAMPLE = 16_384
OPQ_MIN_BITS, OPQ_MAX_BITS = 2, 6
POINTS_PER_CENTROID = 40
LEAST_SAMPLE = 65_536


def training_vectors_wanted(spec: CodecSpec) -> int:
    """Vectors per codebook beyond which training on more is not worth its time: 655,360 for Residual2x14."""
    return max(LEAST_SAMPLE, POINTS_PER_CENTROID * spec.centroids()) if spec.is_trained else 0


def train_codec(
    spec: CodecSpec,
    scope: Scope,
    heads: Heads,
    keys: npt.NDArray[Any],
    values: npt.NDArray[Any],
    positions: npt.NDArray[np.uint8],
    device: torch.device | str = "cpu",
) -> Codec:
    """Learn a codec from sampled references.

    ``keys``, ``values`` (R, N_heads, S, d) of any float dtype, ``positions`` (R, N_heads, S) uint8 with 255
    for unused slots. The spec must fit the sample (``presets.fit_to_sample`` makes it fit); InputError if it
    does not. ``none`` needs no sample: R may be 0. ``device`` is where assignments to the large codebooks
    run; the result does not depend on it.
    """
    _, count, slots, head_dim = keys.shape
    if count != len(heads):
        raise InputError(f"codec: the sample has {count} heads, the head list {len(heads)}")
    spec.check_head_dim(head_dim)
    if not spec.is_trained:
        return Codec(spec, scope, heads, head_dim, slots, {})
    used = positions != 255
    mean, scale = _statistics(keys, values, used)
    numbers = codebook_numbers(scope, heads)
    learnt: list[dict[str, Floats]] = []
    with one_faiss_thread():
        for book in range(codebook_count(scope, heads)):
            sample = _sample(keys, values, used, mean, scale, numbers == book, training_vectors_wanted(spec))
            learnt.append(_train_book(sample, spec, torch.device(device)))
    arrays = {name: np.stack([book[name] for book in learnt]) for name in learnt[0]}
    return Codec(spec, scope, heads, head_dim, slots, {"mean": mean, "scale": scale, **arrays})


@contextmanager
def one_faiss_thread() -> Iterator[None]:
    """Run FAISS on one thread and put back the number that was set before."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _statistics(
    keys: npt.NDArray[Any], values: npt.NDArray[Any], used: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Mean (2, N_heads, d) and root mean square about it (2, N_heads), float32; 0 and 1 for a head that
    has no vectors.
    """
    _, count, _, dim = keys.shape
    mean = np.zeros((2, count, dim), np.float32)
    scale = np.ones((2, count), np.float32)
    for side, vectors in enumerate((keys, values)):
        for head in range(count):
            mine = vectors[:, head][used[:, head]].astype(np.float64)
            if not len(mine):
                continue
            if not np.isfinite(mine).all():
                raise InputError(
                    "codec: the model gives keys or values that are not finite; try --dtype float32"
                )
            mean[side, head] = mine.mean(0)
            spread = float(np.sqrt(np.mean((mine - mean[side, head]) ** 2)))
            # a head that always gives the same vector has rounding noise for a spread: leave it at scale 1
            if spread > 1e-6 * float(np.abs(mine).max()):
                scale[side, head] = spread
    return mean, scale


def _sample(
    keys: npt.NDArray[Any],
    values: npt.NDArray[Any],
    used: npt.NDArray[np.bool_],
    mean: Floats,
    scale: Floats,
    members: npt.NDArray[np.bool_],
    limit: int,
) -> Floats:
    """At most ``limit`` centred and scaled vectors (n, d) float32 of the (kind, head) pairs in ``members``
    (2, N_heads).
    """
    parts = [
        (vectors[:, head][used[:, head]].astype(np.float32) - mean[side, head]) / scale[side, head]
        for side, vectors in enumerate((keys, values))
        for head in np.flatnonzero(members[side])
    ]
    sample = np.concatenate(parts)
    if len(sample) > limit:
        # RandomState's stream is frozen across numpy versions, a Generator's is not
        chosen = np.random.RandomState(SEED).permutation(len(sample))[:limit]
        sample = sample[np.sort(chosen)]
    return np.ascontiguousarray(sample, np.float32)


def _train_book(x: Floats, spec: CodecSpec, device: torch.device) -> dict[str, Floats]:
    """Learn one codebook from x (n, d) float32."""
    if len(x) < max(spec.centroids(), 1):
        raise InputError(
            f"codec {spec}: {len(x)} training vectors are fewer than its {spec.centroids()} centroids"
        )
    learnt: dict[str, Floats] = {}
    if spec.transform:
        learnt["transform"], learnt["transform_bias"], x = _train_transform(x, spec)
    if spec.first_level_bits:
        learnt["first_level"], x = _train_first_level(x, spec.first_level_bits, device)
    if spec.fine == "PQ":
        learnt["product"] = _train_product(x, spec.pq_blocks, spec.pq_bits)
    elif spec.fine != "SQfp16":
        learnt["scalar_range"] = _train_scalar(x, spec)
    return learnt


def _train_transform(x: Floats, spec: CodecSpec) -> tuple[Floats, Floats, Floats]:
    """Matrix A (d_out, d), bias b (d_out), and the transformed vectors x Aᵀ + b."""
    import faiss

    d_in, d_out = x.shape[1], spec.transform_dim
    transform: Any
    if spec.transform == "OPQ":
        transform = faiss.OPQMatrix(d_in, spec.transform_blocks, d_out)
        transform.niter, transform.niter_pq = OPQ_ITERATIONS, 1
        transform.max_train_points = OPQ_SAMPLE
        bits = min(max(d_out // spec.transform_blocks, OPQ_MIN_BITS), OPQ_MAX_BITS)
        product = faiss.ProductQuantizer(d_out, spec.transform_blocks, bits)
        _quiet(product.cp)
        transform.pq = product
        transform.train(x)
    elif spec.transform == "PCA":
        transform = faiss.PCAMatrix(d_in, d_out)
        transform.train(x)
    else:
        transform = faiss.RandomRotationMatrix(d_in, d_out)
        transform.init(SEED)
    matrix = faiss.vector_to_array(transform.A).reshape(d_out, d_in).copy()
    bias = faiss.vector_to_array(transform.b).copy() if transform.have_bias else np.zeros(d_out, np.float32)
    return matrix, bias, transform.apply(x)


def _train_first_level(x: Floats, bits: int, device: torch.device) -> tuple[Floats, Floats]:
    """The codebooks of the two halves (2, 2^bits, d/2), and what they leave of x (n, d)."""
    books: list[Floats] = []
    rest: list[Floats] = []
    for half in np.split(x, 2, axis=1):
        part = np.ascontiguousarray(half)
        book = kmeans(part, 1 << bits, FIRST_LEVEL_ITERATIONS, SEED, device)
        nearest = NearestCentroid(torch.from_numpy(book), device).assign(torch.from_numpy(part).to(device))
        books.append(book)
        rest.append(part - book[nearest.cpu().numpy()])
    return np.stack(books), np.ascontiguousarray(np.concatenate(rest, axis=1))


def _train_product(x: Floats, blocks: int, bits: int) -> Floats:
    import faiss

    product = faiss.ProductQuantizer(x.shape[1], blocks, bits)
    _quiet(product.cp)
    product.cp.niter = PRODUCT_ITERATIONS
    product.cp.max_points_per_centroid = max(POINTS_PER_CENTROID, LEAST_SAMPLE >> bits)
    product.cp.seed = SEED
    product.train(x)
    return faiss.vector_to_array(product.centroids).reshape(blocks, 1 << bits, -1).copy()


def _train_scalar(x: Floats, spec: CodecSpec) -> Floats:
    """(2, d): least value and range of each dimension."""
    import faiss

    kind = {
        4: faiss.ScalarQuantizer.QT_4bit,
        6: faiss.ScalarQuantizer.QT_6bit,
        8: faiss.ScalarQuantizer.QT_8bit,
    }
    quantizer = faiss.ScalarQuantizer(x.shape[1], kind[SCALAR_BITS[spec.fine]])
    quantizer.train(x)
    return faiss.vector_to_array(quantizer.trained).reshape(2, -1).copy()


def _quiet(parameters: Any) -> None:
    # FAISS prints a warning when a cluster gets fewer points than this
    parameters.min_points_per_centroid = 1
