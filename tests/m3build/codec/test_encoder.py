"""Codes made in torch are FAISS's codes, and a reference's codes are its own affair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m3build.codec.encoder import TorchEncoder
from m3build_formats.errors import MismatchError

SPECS = (
    "PQ4x5",
    "PQ2x8",
    "PQ2x9",
    "PQ16x1",
    "Residual2x5,PQ4x3",
    "Residual2x4,PQ2x8",
    "OPQ4_16,Residual2x6,PQ4x5",
    "OPQ2_8,PQ4x6",
    "PCA8,PQ4x5",
    "RR16,PQ8x2",
    "SQ4",
    "SQ6",
    "SQ8",
    "SQfp16",
    "PCA8,SQ4",
    "RR16,SQ8",
    "Residual2x4,SQ6",
    "OPQ4_16,Residual2x5,SQ8",
    "PCA7,SQ6",
    "PCA6,Residual2x3,SQfp16",
)


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


def centred(codec, vectors, side):
    mean, scale = codec.arrays["mean"][side], codec.arrays["scale"][side]
    return (vectors - mean[None, :, None, :]) / scale[None, :, None, None]


@pytest.mark.parametrize("text", SPECS)
def test_codes_are_those_of_faiss(text, trained, memories, index_of):
    codec = trained(text)
    drawn = memories(40, 16, seed=1)
    rows = TorchEncoder(codec, "cpu").encode(*tensors(drawn)).numpy()
    codes = rows.reshape(len(rows), -1, codec.bytes_per_vector)[:, codec.places]
    for side in range(2):
        index = index_of(codec, side)
        assert index.sa_code_size() == codec.bytes_per_vector
        used = drawn[2] != 255
        x = np.ascontiguousarray(centred(codec, drawn[side], side)[used])
        ours, theirs = codes[:, side][used], index.sa_encode(x)
        # what differs are ties: as good a code (and float16 of numbers that differ in their last bit)
        assert (ours == theirs).all(1).mean() > (0.97 if codec.spec.fine == "SQfp16" else 0.995)
        errors = [np.square(index.sa_decode(np.ascontiguousarray(c)) - x).sum(1) for c in (ours, theirs)]
        np.testing.assert_allclose(errors[0], errors[1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("text", SPECS)
def test_decoding_is_that_of_faiss(text, trained, memories, index_of):
    codec = trained(text)
    drawn = memories(20, 16, seed=2)
    rows = TorchEncoder(codec, "cpu").encode(*tensors(drawn)).numpy()
    decoded = codec.decode_rows(rows)
    codes = rows.reshape(len(rows), -1, codec.bytes_per_vector)[:, codec.places]
    for side in range(2):
        flat = np.ascontiguousarray(codes[:, side].reshape(-1, codec.bytes_per_vector))
        theirs = index_of(codec, side).sa_decode(flat).reshape(drawn[0].shape)
        np.testing.assert_allclose(centred(codec, decoded[side], side), theirs, atol=2e-4)


@pytest.mark.parametrize("scope", ["all", "kind", "layer", "head"])
def test_a_references_codes_do_not_depend_on_its_batch(scope, trained, memories):
    codec = trained("OPQ4_16,Residual2x5,PQ4x5", scope=scope)
    drawn = tensors(memories(30, 16, seed=3))
    encoder = TorchEncoder(codec, "cpu")
    whole = encoder.encode(*drawn)
    assert whole.shape == (30, codec.row_bytes)
    for size in (1, 7):
        parts = [encoder.encode(*(side[at : at + size] for side in drawn)) for at in range(0, 30, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(TorchEncoder(codec, "cpu", torch.bfloat16).encode(*drawn), whole)
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(encoder.encode(*drawn), whole)
    torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["none", "PQ4x5", "SQ8"])
def test_unused_slots_are_zero_bytes(text, trained, memories):
    codec = trained(text)
    keys, values, positions = memories(10, 16)
    # whatever lies in an unused slot
    keys[positions == 255] = 7.0
    rows = TorchEncoder(codec, "cpu").encode(*tensors((keys, values, positions))).numpy()
    codes = rows.reshape(10, -1, codec.bytes_per_vector)[:, codec.places]
    unused = np.broadcast_to((positions == 255)[:, None], codes.shape[:-1])
    assert not codes[unused].any()
    assert codes[~unused].any()


def test_none_stores_bfloat16(trained, memories):
    codec = trained("none")
    keys, values, positions = memories(6, 16)
    rows = TorchEncoder(codec, "cpu").encode(*tensors((keys, values, positions))).numpy()
    decoded = codec.decode_rows(rows)
    for side, exact in enumerate((keys, values)):
        assert (decoded[side] == torch.from_numpy(exact).bfloat16().float().numpy()).all()
    # one vector by hand: little-endian upper halves of float32, value of head (0, 1), slot 1
    code = rows[0].reshape(-1, 32)[codec.places[1, 1, 1]]
    upper = torch.from_numpy(values[0, 1, 1]).bfloat16().view(torch.int16).numpy().astype("<i2")
    assert code.tobytes() == upper.tobytes()


def test_bfloat16_and_float32_memories_of_equal_numbers_get_equal_codes(trained, memories):
    codec = trained("Residual2x5,PQ4x3")
    keys, values, positions = tensors(memories(10, 16))
    half = [keys.bfloat16(), values.bfloat16()]
    encoder = TorchEncoder(codec, "cpu")
    assert torch.equal(
        encoder.encode(*half, positions), encoder.encode(*(h.float() for h in half), positions)
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_are_refused(wrong, trained, memories):
    keys, values, positions = tensors(memories(5, 16))
    keys[0, 0, 0, 0] = wrong
    with pytest.raises(MismatchError, match="keys that are not finite"):
        TorchEncoder(trained("SQ8"), "cpu").encode(keys, values, positions)
