"""What all parts of an index share, as plain arrays: the coarse centroids, the quantizer's tables and how
many lists to probe.

Design choices:

- Nothing trained lives in a FAISS file: the arrays are kept with the embedder, so an incremental build fills
  new parts with the same centroids, and every index file can be rebuilt from embeddings and these arrays.
- Inverted lists hold vectors themselves, not residuals: a part can then be searched without its centroids,
  which are not repeated in each of thousands of parts.
- Training runs on one thread and takes the first vectors of the sample as it is given: same sample, same
  bytes. With inverted lists the sample is read a block at a time and may lie on disk.
- How many lists to probe is measured, not guessed. Randomly projected lexical vectors hardly cluster: for
  short questions among 45,000 chunks, 64 of 256 lists held 80 % of the answers that a scan finds, and nearly
  all lists would get probed. Where more than half of them would be, ``auto`` has no lists: a scan is faster
  then, exact, and takes less on disk. Vectors of a neural model gain much by lists.
- A sample too small for what was asked makes a smaller index, never an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.index.kmeans import spherical_kmeans
from m3build.index.library import load_faiss, one_thread
from m3build.index.nearest import Floats, nearest_vectors
from m3build.index.spec import (
    PQ_BITS,
    PQ_SAMPLE,
    IndexSpec,
    check_dimensions,
    choose_spec,
    parse_spec,
    sample_size,
)
from m3build.index.vector_file import Vectors
from m3build_formats.errors import CorruptError, InputError, UsageError

METRIC = "inner_product"
PROBE_RECALL = 0.98
PROBE_NEIGHBOURS = 10
PROBE_QUERIES = 256
_MAX_DIM = 65_536
_KMEANS_ITERATIONS = 10
_BLOCK_ROWS = 128


@dataclass(frozen=True, slots=True, eq=False)
class IndexState:
    """A trained index without any vector.

    ``centroids``: float32 (lists, dim), or (0, dim) without IVF; ``tables``: float32 (any,), FAISS's trained
    values of SQ8 (minima, then widths, dim each) or of PQ (part, centroid, dimension), empty for the others;
    ``probes``: lists searched per query, 0 without IVF.
    """

    spec: IndexSpec
    dim: int
    probes: int
    centroids: Floats
    tables: Floats

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays (formats/SPEC.md, "Embedder arrays")."""
        return {
            "index.spec": np.frombuffer(str(self.spec).encode(), dtype=np.uint8),
            "index.shape": np.array([self.dim, self.probes], dtype=np.int64),
            "index.centroids": self.centroids,
            "index.tables": self.tables,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> IndexState:
        """The state that ``to_arrays`` described. Raises CorruptError if the arrays cannot have come from
        it."""
        wanted: tuple[tuple[str, type[np.generic], int], ...] = (
            ("index.spec", np.uint8, 1),
            ("index.shape", np.int64, 1),
            ("index.centroids", np.float32, 2),
            ("index.tables", np.float32, 1),
        )
        for name, dtype, dimensions in wanted:
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.ndim != dimensions:
                found = "missing" if array is None else f"{array.dtype} with {array.ndim} dimensions"
                raise CorruptError(
                    f"index: the array {name} is {found}, expected {np.dtype(dtype)} with {dimensions}"
                )
        try:
            spec = parse_spec(arrays["index.spec"].tobytes()[:64].decode("ascii"))
        except (UsageError, UnicodeDecodeError) as problem:
            raise CorruptError(f"index: index.spec: {problem}") from problem
        shape = arrays["index.shape"].tolist()
        if (
            len(shape) != 2
            or not 1 <= shape[0] <= _MAX_DIM
            or not (1 <= shape[1] <= spec.lists if spec.lists else shape[1] == 0)
        ):
            raise CorruptError(f"index: index.shape {shape} does not fit {spec}")
        dim, probes = shape
        centroids = np.ascontiguousarray(arrays["index.centroids"], dtype=np.float32)
        tables = np.ascontiguousarray(arrays["index.tables"], dtype=np.float32)
        if spec.storage == "PQ" and dim % spec.m:
            raise CorruptError(f"index: {spec} cannot divide {dim} dimensions into {spec.m} parts")
        if centroids.shape != (spec.lists, dim) or len(tables) != _table_size(spec, dim):
            raise CorruptError(
                f"index: index.centroids {list(centroids.shape)} or index.tables {list(tables.shape)} do not "
                f"fit {spec} with {dim} dimensions"
            )
        if not (np.isfinite(centroids).all() and np.isfinite(tables).all()):
            raise CorruptError("index: index.centroids or index.tables hold values that are not finite")
        return cls(spec, dim, probes, centroids, tables)

    def facts(self) -> dict[str, object]:
        """What a manifest says about the index, apart from the number of vectors and the recall."""
        return {"type": str(self.spec), "metric": METRIC, "probes": self.probes}


def train(
    spec: str,
    vectors: int,
    sample: Vectors,
    queries: Floats | None = None,
    *,
    probe_recall: float = PROBE_RECALL,
) -> IndexState:
    """Train what the parts of an index share.

    ``spec``: ``auto`` or an allowed factory string; ``vectors``: how many the bank has; ``sample``: float16
    (n, dim), an array or a ``VectorFile``, n = 0 included, drawn uniformly, in an order that depends on the
    texts alone, at most ``sample_size(choose_spec(spec, vectors))`` of them are used; ``queries``: float32
    (q, dim), what searches will look like (the last of the sample if None); with IVF the fewest lists (a
    power of two) are probed that find ``probe_recall`` of the true ten nearest sample vectors; ``auto`` is
    without lists where that takes more than half of them. Raises UsageError for a spec that is not allowed or
    does not fit the dimensions, InputError for vectors that are not finite.
    """
    faiss = load_faiss()

    chosen = choose_spec(spec, vectors)
    dim = sample.shape[1]
    check_dimensions(chosen, dim)
    number = min(len(sample), sample_size(chosen))
    chosen = _shrink(chosen, number)
    centroids, tables = np.zeros((0, dim), np.float32), np.zeros(0, np.float32)
    with one_thread():
        if chosen.lists:
            if not all(np.isfinite(block).all() for _, block in _blocks(sample, number)):
                raise InputError(
                    "the embedder gives vectors that are not finite: no index can be trained on them"
                )
            # Evenly spaced: neighbours may be of one document.
            begin = [number * place // chosen.lists for place in range(chosen.lists)]
            centroids = spherical_kmeans(
                np.concatenate([sample[at : at + 1] for at in begin]).astype(np.float32),
                lambda: (block for _, block in _blocks(sample, number)),
                _KMEANS_ITERATIONS,
            )
        if chosen.storage == "SQ8":
            scalar = faiss.ScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit)
            scalar.train(sample[:number].astype(np.float32))
            tables = faiss.vector_to_array(scalar.trained).copy()
        elif chosen.storage == "PQ":
            product = faiss.ProductQuantizer(dim, chosen.m, PQ_BITS)
            product.train(sample[:number].astype(np.float32))
            tables = faiss.vector_to_array(product.centroids).copy()
    state = IndexState(chosen, dim, chosen.lists, centroids, tables)
    if not chosen.lists:
        return state
    if queries is None:
        held_out = min(PROBE_QUERIES, number // 4)
        queries = sample[number - held_out : number].astype(np.float32)
        number -= held_out
    probes = _choose_probes(state, sample, number, queries[:PROBE_QUERIES], probe_recall)
    if spec == "auto" and 2 * probes > chosen.lists:
        return IndexState(replace(chosen, lists=0), dim, 0, centroids[:0].copy(), tables)
    return replace(state, probes=probes)


def empty_index(state: IndexState) -> Any:
    """A FAISS index with the state's tables, its coarse centroids (if any) and no vector."""
    faiss = load_faiss()

    spec, dim = state.spec, state.dim
    metric = faiss.METRIC_INNER_PRODUCT
    kinds = {"SQfp16": faiss.ScalarQuantizer.QT_fp16, "SQ8": faiss.ScalarQuantizer.QT_8bit}
    index: Any
    if spec.storage == "HNSW":
        return faiss.IndexHNSWFlat(dim, spec.m, metric)
    if not spec.lists:
        if spec.storage == "Flat":
            return faiss.IndexFlatIP(dim)
        index = faiss.IndexScalarQuantizer(dim, kinds[spec.storage], metric)
    else:
        coarse = faiss.IndexFlatIP(dim)
        coarse.add(state.centroids)
        if spec.storage == "Flat":
            index = faiss.IndexIVFFlat(coarse, dim, spec.lists, metric)
        elif spec.storage == "PQ":
            index = faiss.IndexIVFPQ(coarse, dim, spec.lists, spec.m, PQ_BITS, metric)
            faiss.copy_array_to_vector(state.tables, index.pq.centroids)
        else:
            index = faiss.IndexIVFScalarQuantizer(coarse, dim, spec.lists, kinds[spec.storage], metric, False)
        index.by_residual = False
        index.nprobe = state.probes
    if spec.storage == "SQ8":
        faiss.copy_array_to_vector(state.tables, index.sq.trained)
    index.is_trained = True
    return index


def _table_size(spec: IndexSpec, dim: int) -> int:
    return {"SQ8": 2 * dim, "PQ": dim << PQ_BITS}.get(spec.storage, 0)


def _shrink(spec: IndexSpec, sample: int) -> IndexSpec:
    """The largest index of the kind that so many training vectors allow."""
    if spec.storage == "PQ" and sample < PQ_SAMPLE:
        spec = replace(spec, storage="SQfp16", m=0)
    if spec.storage == "SQ8" and not sample:
        spec = replace(spec, storage="SQfp16")
    return replace(spec, lists=min(spec.lists, sample // 4))


def _choose_probes(state: IndexState, sample: Vectors, number: int, queries: Floats, wanted: float) -> int:
    """The smallest power of two of probed lists that finds ``wanted`` of the nearest of the first ``number``
    sample vectors; all lists if none does."""
    neighbours = min(PROBE_NEIGHBOURS, number)
    if not len(queries):
        return state.spec.lists
    lists = np.empty(number, np.int32)
    best = np.zeros((len(queries), 0), np.float32)
    near = np.zeros((len(queries), state.spec.lists), np.int32)
    with one_thread():
        for first, block in _blocks(sample, number):
            lists[first : first + len(block)] = nearest_vectors(state.centroids, block, 1)[1][:, 0]
            # By FAISS, as everything here: NumPy's matrix product would keep 8 MiB of buffers of its own.
            scores, _ = nearest_vectors(block, queries, min(neighbours, len(block)))
            best = highest(np.concatenate([best, scores], axis=1), neighbours)
        # Counted by score, so that a tie with the last true neighbour is no miss; the margin is float32's
        # rounding of a sum.
        worst = best.min(axis=1, keepdims=True)
        least = worst - 1e-5 * np.abs(worst)
        for first, block in _blocks(sample, number):
            # All of the block: a query without any n-gram ties with every vector.
            scores, rows = nearest_vectors(block, queries, len(block))
            query, place = np.nonzero(scores >= least)
            np.add.at(near, (query, lists[first + rows[query, place]]), 1)
        order = nearest_vectors(state.centroids, queries, state.spec.lists)[1]
    # The neighbours in each list, the nearest list first.
    near = np.take_along_axis(near, order, 1)
    probes = 1
    while probes < state.spec.lists:
        found = np.minimum(near[:, :probes].sum(axis=1), neighbours)
        if float((found / neighbours).mean()) >= wanted:
            break
        probes *= 2
    return min(probes, state.spec.lists)


def highest(scores: Floats, k: int) -> Floats:
    """The ``k`` highest scores of each row, or all there are, in no order."""
    return scores if scores.shape[1] <= k else np.partition(scores, -k, axis=1)[:, -k:]


def _blocks(sample: Vectors, number: int) -> Iterator[tuple[int, Floats]]:
    """Where each block of the first ``number`` vectors begins, and the block as float32: all would be tens of
    megabytes."""
    for first in range(0, number, _BLOCK_ROWS):
        yield first, sample[first : min(number, first + _BLOCK_ROWS)].astype(np.float32)
