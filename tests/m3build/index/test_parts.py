"""Parts: the same bytes from the same rows, searched as one index, and only the expected index opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.index import (
    IndexState,
    Part,
    PartedIndex,
    build_part,
    exact_search,
    measure_recall,
    open_part,
    train,
)
from m3build.index.library import load_faiss
from m3build_formats.errors import CorruptError

DIM = 16
SPECS = ["Flat", "SQfp16", "SQ8", "IVF8,Flat", "IVF8,SQfp16", "IVF8,SQ8", "IVF4,PQ4", "HNSW8"]
Vectors = npt.NDArray[np.float16]


def vectors(rows: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float16)


def queries(rows: int, seed: int = 9) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def states() -> dict[str, IndexState]:
    sample = vectors(10_000, 5)
    return {spec: train(spec, 10_000, sample) for spec in SPECS}


def opened(state: IndexState, arrays: Sequence[Vectors]) -> PartedIndex:
    def opener(part: Part) -> Callable[[], Part]:
        return lambda: part

    return PartedIndex(
        state, [opener(open_part(state, build_part(state, [array]), len(array))) for array in arrays]
    )


@pytest.mark.parametrize("spec", SPECS)
def test_a_part_depends_on_its_rows_alone(states: dict[str, IndexState], spec: str) -> None:
    rows, faiss = vectors(5000), load_faiss()
    whole = build_part(states[spec], [rows])
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        grouped = build_part(states[spec], [rows[:1], rows[1:700], rows[700:700], rows[700:]])
    finally:
        faiss.omp_set_num_threads(before)
    assert grouped == whole


@pytest.mark.parametrize("spec", SPECS)
def test_a_part_of_no_rows_is_searched_in_peace(states: dict[str, IndexState], spec: str) -> None:
    found = opened(states[spec], [vectors(0), vectors(20)]).search(queries(2), 3)
    assert found.parts.tolist() == [[1, 1, 1]] * 2
    assert opened(states[spec], [vectors(0)]).search(queries(2), 3).rows.shape == (2, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from(["Flat", "SQfp16"]),
)
def test_exact_parts_find_what_a_scan_of_all_vectors_finds(sizes: list[int], k: int, spec: str) -> None:
    state = train(spec, sum(sizes), vectors(0))
    arrays = [vectors(size, seed) for seed, size in enumerate(sizes)]
    asked = queries(3)
    found = opened(state, arrays).search(asked, k)
    scores = asked @ np.concatenate(arrays).astype(np.float32).T
    number = min(k, sum(sizes))
    assert found.rows.shape == (3, number)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :number], rtol=1e-4, atol=1e-4)
    starts = np.cumsum([0, *sizes])
    places = starts[found.parts] + found.rows
    np.testing.assert_allclose(np.take_along_axis(scores, places, 1), found.scores, rtol=1e-4, atol=1e-4)
    scanned = exact_search([[array[:7], array[7:]] for array in arrays], asked, k)
    np.testing.assert_allclose(scanned.scores, found.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["IVF8,Flat", "IVF8,SQfp16"])
def test_ivf_that_probes_every_list_is_exact(states: dict[str, IndexState], spec: str) -> None:
    trained = states[spec]
    state = IndexState(trained.spec, DIM, trained.spec.lists, trained.centroids, trained.tables)
    arrays = [vectors(300, 1), vectors(200, 2)]
    assert measure_recall(opened(state, arrays), [[array] for array in arrays], queries(50)) == 1.0


@pytest.mark.parametrize(
    ("spec", "least"), [("SQ8", 0.9), ("IVF8,SQ8", 0.8), ("HNSW8", 0.9), ("IVF4,PQ4", 0.2)]
)
def test_approximate_indexes_find_most(states: dict[str, IndexState], spec: str, least: float) -> None:
    arrays = [vectors(300, 1), vectors(200, 2)]
    recall = measure_recall(opened(states[spec], arrays), [[array] for array in arrays], queries(50))
    assert least <= recall <= 1.0


def test_recall_counts_ties_as_found(states: dict[str, IndexState]) -> None:
    copies = np.repeat(vectors(5), 40, axis=0)
    assert measure_recall(opened(states["SQfp16"], [copies]), [[copies]], queries(20)) == 1.0
    assert measure_recall(opened(states["SQfp16"], []), [], queries(20)) == 1.0


def test_equal_scores_come_by_part_then_by_row(states: dict[str, IndexState]) -> None:
    same = np.repeat(vectors(1), 3, axis=0)
    found = opened(states["SQfp16"], [same, same]).search(queries(1), 6)
    assert list(zip(found.parts[0].tolist(), found.rows[0].tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip


def test_a_part_holds_no_copy_of_the_centroids(states: dict[str, IndexState]) -> None:
    state = train("IVF64,SQfp16", 10_000, vectors(10_000))
    assert len(build_part(state, [vectors(10)])) < state.centroids.nbytes


@pytest.mark.parametrize("spec", ["Flat", "SQfp16", "SQ8"])
def test_a_part_is_opened_in_place(states: dict[str, IndexState], spec: str) -> None:
    rows = vectors(400)
    buffer = np.frombuffer(build_part(states[spec], [rows]), np.uint8).copy()
    part = open_part(states[spec], buffer, 400)
    index = PartedIndex(states[spec], [lambda: part])
    before = index.search(queries(3), 5)
    buffer[len(buffer) // 2 :] ^= 1
    after = index.search(queries(3), 5)
    # The caller must not do this; here it shows that the vectors were not copied.
    assert (before.scores.tobytes(), before.rows.tobytes()) != (after.scores.tobytes(), after.rows.tobytes())


@pytest.mark.parametrize("spec", SPECS)
def test_every_truncation_is_refused(states: dict[str, IndexState], spec: str) -> None:
    data = build_part(states[spec], [vectors(50)])
    for size in [*range(0, 200, 7), *range(200, len(data), 97), *range(len(data) - 9, len(data))]:
        with pytest.raises(CorruptError, match="index"):
            open_part(states[spec], data[:size], 50)
    with pytest.raises(CorruptError, match="bytes"):
        open_part(states[spec], bytes(data) + b"\0", 50)


@pytest.mark.parametrize("spec", SPECS)
def test_a_part_of_another_index_is_refused(states: dict[str, IndexState], spec: str) -> None:
    for other in SPECS:
        if other != spec:
            with pytest.raises(CorruptError, match="expected"):
                open_part(states[spec], build_part(states[other], [vectors(50)]), 50)


def test_other_rows_dimensions_metric_or_tables_are_refused(states: dict[str, IndexState]) -> None:
    faiss = load_faiss()
    state = states["SQ8"]
    with pytest.raises(CorruptError, match="50 vectors"):
        open_part(state, build_part(state, [vectors(50)]), 51)
    with pytest.raises(CorruptError, match="8 dimensions"):
        open_part(state, build_part(train("SQ8", 50, vectors(50)[:, :8]), [vectors(50)[:, :8]]), 50)
    with pytest.raises(CorruptError, match="tables"):
        open_part(state, build_part(train("SQ8", 50, vectors(20, 8)), [vectors(50)]), 50)
    euclid = faiss.IndexFlatL2(DIM)
    with pytest.raises(CorruptError, match="index"):
        open_part(states["Flat"], faiss.serialize_index(euclid).tobytes(), 0)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "PCA8,Flat", "IVF4_HNSW4,Flat", "IVF8,RaBitQ"])
def test_kinds_that_are_not_on_the_list_are_refused(states: dict[str, IndexState], factory: str) -> None:
    faiss = load_faiss()
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors(300).astype(np.float32))
    with pytest.raises(CorruptError, match="index"):
        open_part(states["IVF8,Flat"], faiss.serialize_index(index).tobytes(), 0)


def test_faiss_limits_are_as_before_after_opening(states: dict[str, IndexState]) -> None:
    faiss = load_faiss()
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    open_part(states["Flat"], build_part(states["Flat"], [vectors(5)]), 5)
    with pytest.raises(CorruptError):
        open_part(states["Flat"], b"IxFI" + b"\xff" * 60, 5)
    assert (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()) == before


@pytest.mark.parametrize("spec", SPECS)
def test_flipped_bytes_are_refused_or_harmless(states: dict[str, IndexState], spec: str) -> None:
    state, data, chance = states[spec], build_part(states[spec], [vectors(60)]), np.random.default_rng(0)
    for place in chance.integers(0, len(data), 100).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        try:
            part = open_part(state, bytes(flipped), 60)
            found = PartedIndex(state, [lambda part=part: part]).search(queries(4), 5)  # type: ignore[misc]
        except CorruptError:
            continue
        assert ((found.rows >= -1) & (found.rows < 60)).all()


def test_rows_that_a_shard_does_not_have_are_never_returned(states: dict[str, IndexState]) -> None:
    faiss = load_faiss()
    state = states["IVF8,Flat"]
    data = bytearray(build_part(state, [vectors(50)]))
    honest = faiss.deserialize_index(np.frombuffer(bytes(data), np.uint8))
    ids = faiss.rev_swig_ptr(honest.invlists.get_ids(0), honest.invlists.list_size(0)).tobytes()
    place = bytes(data).index(ids)
    data[place : place + 8] = (10**6).to_bytes(8, "little")
    part = open_part(IndexState(state.spec, DIM, 8, state.centroids, state.tables), bytes(data), 50)
    with pytest.raises(CorruptError, match="rows that its shard does not have"):
        PartedIndex(IndexState(state.spec, DIM, 8, state.centroids, state.tables), [lambda: part]).search(
            queries(5), 50
        )


def test_vectors_of_another_width_are_an_error_of_the_caller(states: dict[str, IndexState]) -> None:
    with pytest.raises(ValueError, match="expected"):
        build_part(states["Flat"], [vectors(5)[:, :3]])
