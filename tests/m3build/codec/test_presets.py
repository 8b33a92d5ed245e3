"""From preset or string to a codec that fits heads, sample and time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.codec.presets import (
    ENCODING_SHARE,
    GOOD_POINTS,
    RATE,
    fit_to_sample,
    memory3,
    memory3_small,
    resolve_codec,
)
from m3build.codec.spec import parse_spec
from m3build_formats.errors import UsageError

PLENTY = 10**9


def test_memory3_at_80_dimensions_is_the_papers_codec():
    found = resolve_codec("memory3", 80, training_vectors=PLENTY)
    assert (str(found.spec), found.warnings) == ("OPQ20_80,Residual2x14,PQ8x10", ())


@pytest.mark.parametrize("preset", [memory3, memory3_small])
@pytest.mark.parametrize(
    "dim", [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 120, 128, 144, 160, 192, 224, 256]
)
def test_presets_keep_the_papers_rate_and_its_bytes_rounded_up(preset, dim):
    spec = preset(dim)
    spec.check_head_dim(dim)
    assert abs(spec.nominal_bits(dim) / dim / RATE - 1) < 0.08
    assert spec.bytes_per_vector(dim) <= -(-RATE * dim // 8)


def test_every_head_dimension_has_presets():
    for dim in range(1, 257):
        automatic = resolve_codec("auto", dim, training_vectors=PLENTY).spec
        for preset in (memory3(dim), memory3_small(dim), automatic):
            preset.check_head_dim(dim)
            assert parse_spec(str(preset)) == preset


@pytest.mark.parametrize("dim", [32, 64, 80, 128])
def test_memory3_small_costs_a_fraction(dim):
    assert memory3_small(dim).encode_flops(dim) < 0.35 * memory3(dim).encode_flops(dim)


@given(st.integers(1, 256), st.integers(0, 10**7), st.floats(1e6, 1e13), st.integers(1, 5000))
def test_auto_encodes_within_a_fifth_of_the_forward_pass_or_warns(dim, sample, forward, vectors):
    found = resolve_codec(
        "auto", dim, training_vectors=sample, forward_flops=forward, vectors=vectors, quantizer_speed=1.0
    )
    cost = found.spec.encode_flops(dim) * vectors
    assert cost <= ENCODING_SHARE * forward or found.warnings
    assert found.spec.centroids() * GOOD_POINTS <= sample or not found.spec.is_trained


def test_auto_takes_larger_codebooks_as_model_and_corpus_grow():
    small = resolve_codec("auto", 80, training_vectors=10**7, forward_flops=1e8, vectors=384).spec
    large = resolve_codec("auto", 80, training_vectors=10**8, forward_flops=3e11, vectors=2816).spec
    few = resolve_codec("auto", 80, training_vectors=20_000, forward_flops=3e11, vectors=2816).spec
    assert large == memory3(80)
    assert small.centroids() < large.centroids()
    assert few.centroids() < large.centroids()


def test_auto_fills_the_last_byte_of_tiny_heads():
    spec = resolve_codec("auto", 8, training_vectors=PLENTY).spec
    assert (spec.bytes_per_vector(8), spec.nominal_bits(8)) == (2, 16)


@pytest.mark.parametrize("name", ["auto", "memory3", "memory3-small", "SQ8", "PQ4x8"])
@pytest.mark.parametrize("sample", [0, 1, 10])
def test_with_next_to_no_vectors_memories_stay_unquantized_and_the_user_is_told(name, sample):
    found = resolve_codec(name, 16, training_vectors=sample)
    assert not found.spec.is_trained
    assert len(found.warnings) == 1
    assert "too few" in found.warnings[0]


def test_a_named_codec_shrinks_only_where_the_sample_leaves_no_choice():
    asked = parse_spec("OPQ20_80,Residual2x14,PQ8x10")
    shrunk = fit_to_sample(asked, 40_000)
    assert str(shrunk.spec) == "OPQ20_80,Residual2x12,PQ8x10"
    assert "too few" in shrunk.warnings[0]
    assert fit_to_sample(asked, 200_000).spec == asked
    assert "638,976 would be better" in fit_to_sample(asked, 200_000).warnings[0]
    assert fit_to_sample(asked, 640_000).warnings == ()


def test_none_is_never_warned_about():
    assert resolve_codec("none", 80, training_vectors=0).warnings == ()


def test_an_unknown_name_is_refused_with_presets_and_grammar():
    with pytest.raises(UsageError, match="memory3-small"):
        resolve_codec("memory4", 80, training_vectors=PLENTY)
    with pytest.raises(UsageError, match="1, 2, 4, 8, 16"):
        resolve_codec("PQ5x8", 16, training_vectors=PLENTY)
