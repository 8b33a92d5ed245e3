"""A codec's arrays: stored, read back, decoded, and distrusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.codec.codec import Codec, array_shapes
from m3build.codec.encoder import TorchEncoder
from m3build_formats.errors import CorruptError


@pytest.mark.parametrize("text", ["none", "SQfp16", "SQ8", "PQ4x5", "OPQ4_16,Residual2x6,PQ4x5", "PCA6,SQ4"])
def test_a_codec_stored_and_read_back_decodes_alike(text, trained, memories):
    codec = trained(text, scope="layer")
    again = Codec.from_arrays(codec.to_arrays(), codec.facts())
    drawn = memories(8, 16)
    rows = TorchEncoder(codec, "cpu").encode(*(torch.from_numpy(side) for side in drawn)).numpy()
    assert (
        TorchEncoder(again, "cpu").encode(*(torch.from_numpy(side) for side in drawn)).numpy() == rows
    ).all()
    for ours, theirs in zip(
        codec.decode_rows(rows, drawn[2]), again.decode_rows(rows, drawn[2]), strict=True
    ):
        assert (ours == theirs).all()


@pytest.mark.parametrize("scope", ["all", "kind", "layer", "head"])
def test_rows_and_single_vectors_decode_alike(scope, trained, memories):
    codec = trained("Residual2x5,PQ4x3", scope=scope)
    drawn = memories(8, 16)
    rows = TorchEncoder(codec, "cpu").encode(*(torch.from_numpy(side) for side in drawn)).numpy()
    whole = codec.decode_rows(rows)
    vectors = rows.reshape(8, -1, codec.bytes_per_vector)
    for side, kind in enumerate(("key", "value")):
        for head in range(3):
            one = codec.decode(vectors[:, codec.places[side, head]], kind, head)
            np.testing.assert_allclose(one, whole[side][:, head], rtol=1e-6, atol=1e-6)


def test_decoding_with_positions_leaves_unused_slots_zero(trained, memories):
    codec = trained("PQ4x5")
    drawn = memories(8, 16)
    rows = TorchEncoder(codec, "cpu").encode(*(torch.from_numpy(side) for side in drawn)).numpy()
    for decoded, exact in zip(codec.decode_rows(rows, drawn[2]), drawn, strict=False):
        assert not decoded[drawn[2] == 255].any()
        assert decoded[drawn[2] != 255].all(1).any()
        assert decoded.shape == exact.shape


def test_scales_and_means_make_one_codebook_serve_unlike_heads(trained, memories):
    codec = trained("SQ8", scope="all")
    drawn = memories(30, 16, seed=5)
    rows = TorchEncoder(codec, "cpu").encode(*(torch.from_numpy(side) for side in drawn)).numpy()
    keys, _ = codec.decode_rows(rows)
    used = drawn[2] != 255
    for head in range(3):
        exact = drawn[0][:, head][used[:, head]]
        error = np.square(keys[:, head][used[:, head]] - exact).sum() / np.square(exact - exact.mean(0)).sum()
        assert error < 3e-3


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=4, max_size=4))
def test_any_bytes_decode_to_finite_vectors(code):
    arrays = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    codec = Codec.from_arrays(arrays, FACTS)
    assert np.isfinite(codec.decode(np.frombuffer(code, np.uint8), "key", 0)).all()


FACTS = {"spec": "OPQ2_8,Residual2x5,PQ4x3", "scope": "kind", "heads": [[0, 0]], "head_dim": 8, "slots": 2}
SHAPES = {
    "mean": (2, 1, 8),
    "scale": (2, 1),
    "transform": (2, 8, 8),
    "transform_bias": (2, 8),
    "first_level": (2, 2, 32, 4),
    "product": (2, 4, 8, 2),
}


def test_the_shapes_are_those_of_the_specification(trained):
    codec = Codec.from_arrays({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, FACTS)
    assert array_shapes(codec.spec, codec.scope, codec.heads, codec.head_dim) == SHAPES
    scalar = trained("SQ6", scope="head")
    assert {name: array.shape for name, array in scalar.arrays.items()} == {
        "mean": (2, 3, 16),
        "scale": (2, 3),
        "scalar_range": (6, 2, 16),
    }


def damage(name, array):
    return {**{n: np.ones(s, np.float32) for n, s in SHAPES.items()}, name: array}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "expected"),
        (damage("extra", np.ones(1, np.float32)), "extra"),
        (damage("mean", np.ones((2, 1, 7), np.float32)), "mean"),
        (damage("product", np.ones((2, 4, 7, 2), np.float32)), "product"),
        (damage("first_level", np.ones((2, 2, 32, 4), np.float64)), "float64"),
        (damage("scale", np.full((2, 1), np.nan, np.float32)), "finite"),
        (damage("scale", np.zeros((2, 1), np.float32)), "positive"),
    ],
)
def test_arrays_that_do_not_match_the_spec_are_corrupt(arrays, words):
    with pytest.raises(CorruptError, match=words):
        Codec.from_arrays(arrays, FACTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": "IVF4,Flat"}, "IVF4"),
        ({"spec": "PQ3x8"}, "PQ3"),
        ({"spec": 5}, "spec"),
        ({"spec": "P" * 5000}, "spec"),
        ({"scope": "world"}, "scope"),
        ({"scope": []}, "scope"),
        ({"head_dim": 10**9}, "head_dim"),
        ({"head_dim": True}, "head_dim"),
        ({"slots": 0}, "slots"),
        ({"slots": 2.0}, "slots"),
        ({"heads": []}, "heads"),
        ({"heads": "ab"}, "heads"),
        ({"heads": [[0]]}, "heads"),
        ({"heads": [[0, -1]]}, "heads"),
        ({"heads": [[1, 0], [0, 0]]}, "ascending"),
        ({"heads": [[0, 0], [0, 0]]}, "ascending"),
    ],
)
def test_facts_of_a_hostile_manifest_are_corrupt(change, words):
    with pytest.raises(CorruptError, match=words):
        Codec.from_arrays({}, {**FACTS, **change})


@pytest.mark.parametrize("missing", sorted(FACTS))
def test_a_missing_fact_is_named(missing):
    with pytest.raises(CorruptError, match=missing):
        Codec.from_arrays({}, {name: value for name, value in FACTS.items() if name != missing})
