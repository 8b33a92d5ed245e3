"""Codec strings: what is read, what is refused and with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.codec.spec import CodecSpec, parse_spec
from m3build_formats.errors import UsageError

transforms = st.one_of(
    st.just(("", 0, 0)),
    st.tuples(st.just("OPQ"), st.integers(1, 64), st.integers(1, 256)),
    st.tuples(st.sampled_from(["PCA", "RR"]), st.just(0), st.integers(1, 256)),
)
fines = st.one_of(
    st.tuples(st.just("PQ"), st.integers(1, 64), st.integers(1, 16)),
    st.tuples(st.sampled_from(["SQ4", "SQ6", "SQ8", "SQfp16"]), st.just(0), st.just(0)),
)


@given(transforms, st.integers(0, 16), fines)
def test_a_spec_written_and_read_back_is_the_same(transform, first, fine):
    spec = CodecSpec(*transform, first, *fine)
    assert parse_spec(str(spec)) == spec


def test_the_papers_codec_takes_108_bits_in_14_bytes():
    spec = parse_spec("OPQ20_80,Residual2x14,PQ8x10")
    assert (spec.nominal_bits(80), spec.bytes_per_vector(80)) == (108, 14)
    assert spec.encode_flops(80) > 2 * 80 * 2**14


@pytest.mark.parametrize(
    ("text", "dim", "size"),
    [
        ("none", 80, 160),
        ("SQfp16", 8, 16),
        ("SQ8", 8, 8),
        ("SQ6", 8, 6),
        ("SQ4", 7, 4),
        ("PCA4,SQ8", 8, 4),
        ("PQ2x5", 8, 2),
        ("Residual2x5,PQ2x5", 8, 4),
        ("RR8,Residual2x4,SQ4", 8, 5),
    ],
)
def test_stored_bytes_round_the_first_level_and_the_rest_up_separately(text, dim, size):
    assert parse_spec(text).bytes_per_vector(dim) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PQ8",
        "IVF64,PQ8x8",
        "SQ5",
        "PQ8x8,SQ8",
        "Residual3x8,PQ8x8",
        "Residual2x17,PQ8x8",
        "PQ8x17",
        "PQ0x8",
        "OPQ4_0,PQ4x8",
        "LSQ4x8",
        "PQ8x8fs",
        "NONE",
        "none,PQ8x8",
        "OPQ4,PQ4x8",
        "PQ8x8,",
        " PQ8x8",
        "PCA8",
        "PQ٣x8",
    ],
)
def test_other_strings_are_refused_with_what_is_allowed(text):
    with pytest.raises(UsageError, match=r"Residual2x|bits a block"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "dim", "words"),
    [
        ("PQ3x8", 8, "1, 2, 4, 8"),
        ("OPQ3_8,PQ2x8", 8, "1, 2, 4, 8"),
        ("PCA16,SQ8", 8, "use 8 or fewer"),
        ("Residual2x4,SQ8", 7, "even"),
        ("none", 0, "outside"),
    ],
)
def test_a_spec_that_does_not_fit_the_heads_says_which_values_do(text, dim, words):
    with pytest.raises(UsageError, match=words):
        parse_spec(text).check_head_dim(dim)
