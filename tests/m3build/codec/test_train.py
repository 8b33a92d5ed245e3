"""Training: repeatable, quiet, and modest in what it needs."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from m3build.codec.spec import parse_spec
from m3build.codec.train import LEAST_SAMPLE, one_faiss_thread, train_codec, training_vectors_wanted
from m3build_formats.errors import InputError

HEADS = ((0, 0), (0, 1), (2, 0))


@pytest.mark.parametrize("text", ["OPQ4_16,Residual2x5,PQ4x4", "PCA8,SQ6", "RR16,PQ4x6"])
def test_two_trainings_on_the_same_vectors_give_the_same_bytes(text, memories):
    drawn = memories(50, 16)
    results = []
    before = faiss.omp_get_max_threads()
    for threads in (1, 3):
        faiss.omp_set_num_threads(threads)
        arrays = train_codec(parse_spec(text), "kind", HEADS, *drawn).to_arrays()
        results.append({name: array.tobytes() for name, array in arrays.items()})
        assert faiss.omp_get_max_threads() == threads
    faiss.omp_set_num_threads(before)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "text", ["OPQ4_16,Residual2x6,PQ4x6", "PQ2x7", "OPQ8_16,SQ4", "PCA16,Residual2x4,SQ8"]
)
def test_training_on_few_vectors_says_nothing(text, memories, capfd):
    # 43 · 3 · 4 vectors of each kind, less than 39 for each of 64 centroids
    train_codec(parse_spec(text), "kind", HEADS, *memories(43, 16))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_the_number_of_threads_is_put_back_after_an_error():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)

    def fail() -> None:
        with one_faiss_thread():
            raise RuntimeError(str(faiss.omp_get_max_threads()))

    with pytest.raises(RuntimeError, match="1"):
        fail()
    assert faiss.omp_get_max_threads() == 3
    faiss.omp_set_num_threads(before)


def test_unused_slots_are_not_learnt_from(memories):
    keys, values, positions = memories(50, 16)
    arrays = train_codec(parse_spec("PQ4x4"), "kind", HEADS, keys, values, positions).to_arrays()
    keys[positions == 255] = 1e6
    again = train_codec(parse_spec("PQ4x4"), "kind", HEADS, keys, values, positions).to_arrays()
    assert all((arrays[name] == again[name]).all() for name in arrays)


def test_a_constant_head_keeps_scale_one(memories):
    keys, values, positions = memories(50, 16)
    keys[:, 1] = 0.1
    arrays = train_codec(parse_spec("SQ8"), "kind", HEADS, keys, values, positions).to_arrays()
    assert arrays["scale"][0, 1] == 1
    assert np.allclose(arrays["mean"][0, 1], 0.1)


def test_none_needs_no_sample(memories):
    empty = [side[:0] for side in memories(5, 16)]
    assert train_codec(parse_spec("none"), "kind", HEADS, *empty).to_arrays() == {}


def test_too_few_vectors_for_the_codebooks_are_refused(memories):
    with pytest.raises(InputError, match="fewer than its 256 centroids"):
        train_codec(parse_spec("PQ4x8"), "head", HEADS, *memories(20, 16))


def test_vectors_that_are_not_finite_are_refused(memories):
    keys, values, positions = memories(50, 16)
    values[0, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match="not finite"):
        train_codec(parse_spec("SQ8"), "kind", HEADS, keys, values, positions)


def test_the_papers_codec_wants_640000_vectors_a_codebook():
    assert 640_000 <= training_vectors_wanted(parse_spec("OPQ20_80,Residual2x14,PQ8x10")) <= 700_000
    assert training_vectors_wanted(parse_spec("PQ2x8")) == LEAST_SAMPLE
    assert training_vectors_wanted(parse_spec("none")) == 0
