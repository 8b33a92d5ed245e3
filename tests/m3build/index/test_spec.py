"""The allow-list of index kinds, and what ``auto`` means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.index import IndexSpec, choose_spec, parse_spec, sample_size
from m3build.index.spec import EXACT_VECTORS, MAX_LISTS
from m3build_formats.errors import UsageError

ALLOWED = ["Flat", "SQfp16", "SQ8", "IVF64,Flat", "IVF64,SQfp16", "IVF1,SQ8", "IVF1024,PQ64", "HNSW32"]


@pytest.mark.parametrize("text", ALLOWED)
def test_an_allowed_string_is_its_spec_and_back(text: str) -> None:
    assert str(parse_spec(text)) == text
    assert choose_spec(text, 10**9) == parse_spec(text)


REFUSED = [
    "flat",
    "IVF0,Flat",
    "IVF64",
    "PQ16",
    "IVF64,HNSW32",
    "IVF64_HNSW32,Flat",
    "HNSW32,SQ8",
    "HNSW1",
    "LSH",
    "OPQ16,IVF64,PQ16",
    "IVF64,PQ16x4fs",
    "PCA64,Flat",
    "IVF99999,Flat",
    "IVF６4,Flat",
    "IVF64,PQ9999",
]


@pytest.mark.parametrize("text", [*REFUSED, "", "Flat ", "Flat\n"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_spec(text, 1000)
    assert repr(text) in str(caught.value)


def test_auto_is_exact_while_small_and_ivf_beyond() -> None:
    assert choose_spec("auto", 0) == choose_spec("auto", EXACT_VECTORS) == IndexSpec("SQfp16")
    assert choose_spec("auto", EXACT_VECTORS).exact
    assert str(choose_spec("auto", EXACT_VECTORS + 1)) == "IVF512,SQfp16"
    assert str(choose_spec("auto", 1_000 * EXACT_VECTORS)) == "IVF512,SQfp16"


@given(st.integers(0, 10**12))
def test_auto_stays_within_the_limits(vectors: int) -> None:
    spec = choose_spec("auto", vectors)
    assert spec.lists <= MAX_LISTS
    assert parse_spec(str(spec)) == spec
    assert sample_size(spec) <= 32 * MAX_LISTS


@pytest.mark.parametrize("text", ["Flat", "SQfp16", "SQ8", "IVF4,Flat", "IVF4,SQfp16", "IVF4,SQ8"])
def test_stored_bytes_are_what_a_vector_adds_to_the_file(text: str) -> None:
    import numpy as np

    from m3build.index import build_part, stored_bytes, train

    rows = np.random.default_rng(0).standard_normal((600, 32)).astype(np.float16)
    state = train(text, 600, rows)
    few, many = len(build_part(state, [rows[:200]])), len(build_part(state, [rows]))
    assert (many - few) / 400 == stored_bytes(state.spec, 32)
