"""The index files that cases put together by hand are FAISS's own where nothing is spoilt."""

from __future__ import annotations

import numpy as np
import pytest
from faiss_bytes import EIGHT_BITS, Graph, flat, inverted_flat, inverted_product, inverted_scalar, scalar
from faiss_bytes import scalar_quantizer as quantizer
from good_bank import DIM, make_state

from m3build.index import build_part, open_part

VECTORS = np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float16)


def test_exact_and_scalar_indexes_are_those_of_faiss() -> None:
    assert flat(VECTORS) == build_part(make_state("Flat"), [VECTORS])
    assert scalar(VECTORS.tobytes(), 40) == build_part(make_state("SQfp16"), [VECTORS])
    state = make_state("SQ8")
    real = bytes(build_part(state, [VECTORS]))
    assert scalar(real[-40 * DIM :], 40, quantizer(EIGHT_BITS, state.tables)) == real


def test_graphs_come_apart_and_together() -> None:
    real = bytes(build_part(make_state("HNSW4"), [VECTORS]))
    assert Graph.of(real).to_bytes() == real


@pytest.mark.parametrize("spec", ["IVF4,Flat", "IVF4,SQfp16", "IVF2,PQ4"])
def test_inverted_lists_open_where_nothing_is_spoilt(spec: str) -> None:
    state = make_state(spec)
    made = {
        "IVF4,Flat": lambda: inverted_flat(VECTORS),
        "IVF4,SQfp16": lambda: inverted_scalar(VECTORS),
        "IVF2,PQ4": lambda: inverted_product(40, state.tables),
    }[spec]()
    part = open_part(state, made.to_bytes(), 40)
    real = bytes(build_part(state, [VECTORS]))
    assert made.to_bytes()[: made.to_bytes().index(b"ilar") + 20] == real[: real.index(b"ilar") + 20]
    assert part.rows == 40
