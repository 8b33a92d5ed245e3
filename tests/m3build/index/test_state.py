"""What the parts of an index share: trained the same every time, at any size, and refused when damaged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from m3build.index import IndexState, train
from m3build.index.library import load_faiss, one_thread
from m3build.index.spec import EXACT_VECTORS
from m3build.index.state import empty_index
from m3build_formats.errors import CorruptError, InputError, UsageError

DIM = 16
SPECS = ["auto", "Flat", "SQfp16", "SQ8", "IVF8,Flat", "IVF8,SQfp16", "IVF8,SQ8", "HNSW8"]


def vectors(rows: int, seed: int = 0) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float16)


def arrays_of(state: IndexState) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.to_arrays().items()}


@pytest.mark.parametrize("spec", SPECS)
def test_a_state_comes_back_from_its_arrays(spec: str) -> None:
    state = train(spec, 500, vectors(500))
    again = IndexState.from_arrays({**state.to_arrays(), "lexical.totals": np.zeros(2, np.int64)})
    assert arrays_of(again) == arrays_of(state)
    assert again.facts() == state.facts()


@pytest.mark.parametrize("spec", ["IVF8,SQ8", "IVF8,Flat"])
def test_the_number_of_threads_changes_no_bit(spec: str) -> None:
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    try:
        states = []
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            states.append(arrays_of(train(spec, 3000, vectors(3000))))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert states[0] == states[1]


@pytest.mark.parametrize("spec", [*SPECS, "IVF8,PQ4"])
@pytest.mark.parametrize("rows", [0, 1, 3, 10])
def test_a_tiny_sample_makes_a_smaller_index(spec: str, rows: int) -> None:
    state = train(spec, rows, vectors(rows))
    assert state.spec.lists <= rows // 4
    assert IndexState.from_arrays(state.to_arrays()).spec == state.spec


def test_lists_probed_are_as_few_as_the_recall_allows() -> None:
    centres = np.eye(DIM, dtype=np.float32)[:8] * 10
    near = np.repeat(centres, 50, axis=0) + np.random.default_rng(1).standard_normal((400, DIM)) * 0.1
    clustered = np.random.default_rng(2).permutation(near).astype(np.float16)
    few = train("IVF8,Flat", 400, clustered, clustered[:50].astype(np.float32))
    every = train("IVF8,Flat", 400, vectors(400), -vectors(50, 3).astype(np.float32), probe_recall=1.0)
    assert few.probes <= 2
    assert few.probes < every.probes <= 8
    assert train("IVF8,Flat", 400, clustered).probes >= 1


def test_queries_that_tie_with_every_vector_need_no_more_lists() -> None:
    centres = np.eye(DIM, dtype=np.float32)[:8] * 10
    near = np.repeat(centres, 50, axis=0) + np.random.default_rng(1).standard_normal((400, DIM)) * 0.1
    clustered = np.random.default_rng(2).permutation(near).astype(np.float16)
    queries = clustered[:50].astype(np.float32)
    few = train("IVF8,Flat", 400, clustered, queries)
    # What has no n-gram is the zero vector: any ten vectors are its nearest, those of its first list too.
    queries[:25] = 0
    assert train("IVF8,Flat", 400, clustered, queries).probes == few.probes


def test_auto_has_lists_only_where_most_of_them_need_not_be_probed() -> None:
    centres = np.eye(DIM, dtype=np.float32)[:8] * 10
    near = np.repeat(centres, 50, axis=0) + np.random.default_rng(1).standard_normal((400, DIM)) * 0.1
    clustered = np.random.default_rng(2).permutation(near).astype(np.float16)
    many = EXACT_VECTORS + 1
    narrowed = train("auto", many, clustered, clustered[:50].astype(np.float32))
    assert narrowed.spec.lists == 100
    assert 2 * narrowed.probes <= 100
    scattered = vectors(400), -vectors(50, 3).astype(np.float32)
    assert 2 * train("IVF512,SQfp16", many, *scattered).probes > 100
    whole = train("auto", many, *scattered)
    assert (str(whole.spec), whole.probes, whole.centroids.shape) == ("SQfp16", 0, (0, DIM))
    assert IndexState.from_arrays(whole.to_arrays()).spec == whole.spec


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.98])
def test_the_probes_find_in_an_index_of_the_sample_what_was_wanted_and_half_of_them_do_not(
    wanted: float,
) -> None:
    sample, queries = vectors(2000, 5), vectors(100, 6).astype(np.float32)
    state = train("IVF16,SQfp16", 2000, sample, queries, probe_recall=wanted)
    index = empty_index(state)
    index.add(sample.astype(np.float32))
    true = -np.sort(-(queries @ sample.astype(np.float32).T), axis=1)[:, 9:10]

    def recall(probes: int) -> float:
        index.nprobe = probes
        return float((index.search(queries, 10)[0] >= true - 1e-4).mean())

    assert recall(state.probes) >= wanted
    assert state.probes > 1
    assert recall(state.probes // 2) < wanted


def test_vectors_that_are_not_finite_train_nothing() -> None:
    sample = vectors(500)
    sample[321, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        train("IVF8,SQfp16", 500, sample)


def test_product_quantizers_must_divide_the_dimensions() -> None:
    with pytest.raises(UsageError, match="16 dimensions cannot be divided"):
        train("IVF4,PQ5", 1000, vectors(100))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("index.spec", None),
        ("index.spec", np.frombuffer(b"LSH", np.uint8)),
        ("index.spec", np.frombuffer(b"\xff\xff", np.uint8)),
        ("index.spec", np.zeros(5, np.int64)),
        ("index.shape", np.array([DIM], np.int64)),
        ("index.shape", np.array([DIM, 0], np.int64)),
        ("index.shape", np.array([DIM, 9], np.int64)),
        ("index.shape", np.array([1 << 40, 1], np.int64)),
        ("index.centroids", np.zeros((8, DIM + 1), np.float32)),
        ("index.centroids", np.zeros((7, DIM), np.float32)),
        ("index.centroids", np.full((8, DIM), np.nan, np.float32)),
        ("index.tables", np.zeros(3, np.float32)),
    ],
)
def test_arrays_that_cannot_be_are_corrupt(name: str, array: npt.NDArray[np.generic] | None) -> None:
    arrays = train("IVF8,SQ8", 500, vectors(500)).to_arrays()
    del arrays[name]
    if array is not None:
        arrays[name] = array
    with pytest.raises(CorruptError, match="index"):
        IndexState.from_arrays(arrays)


def test_one_thread_puts_the_number_back_even_after_an_error() -> None:
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()

    def fail_on_one_thread() -> None:
        with one_thread():
            assert faiss.omp_get_max_threads() == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_on_one_thread()
    assert faiss.omp_get_max_threads() == before
