"""The encoder: kept keys, values and positions are right, and their bits depend on the reference alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, save_tiny_model

from m3build.capture import LayerCapture
from m3build.encode import LADDER_STEP, EncodedBatch, ReferenceEncoder, padded_length
from m3build.model import LoadedModel, ShapeRequest, load_model
from m3build.selection import get_selector
from m3build.selection.base import References, Selector
from m3build_formats.errors import MismatchError, ResourceError

Memory = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def references_of(count: int, seed: int = 0, most: int = 128, vocabulary: int = 384) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(2, vocabulary) for _ in range(draw.randint(1, most))] for _ in range(count)]


def by_index(batches: Iterable[EncodedBatch]) -> dict[int, Memory]:
    found: dict[int, Memory] = {}
    for batch in batches:
        for row, index in enumerate(batch.indices):
            assert index not in found
            found[index] = (batch.keys[row], batch.values[row], batch.positions[row])
    return found


def same(one: Memory, other: Memory) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> LoadedModel:
    return load_model(str(tiny_llama), device="cpu", dtype="float32")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_memory_is_what_a_full_forward_pass_with_the_cache_holds_at_the_kept_positions(
    arch: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, DynamicCache

    directory = save_tiny_model(tmp_path, arch, initializer_range=0.2)
    request = ShapeRequest(memory_layers="0,2", sparse_tokens=5, reference_tokens=40)
    model = load_model(str(directory), request, device="cpu", dtype="float32")
    references = references_of(4, most=40)
    found = by_index(ReferenceEncoder(model).encode(references))
    whole = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    bos = list(model.reference_bos_ids)
    for index, reference in enumerate(references):
        cache = DynamicCache()
        with torch.no_grad():
            whole(input_ids=torch.tensor([bos + reference]), past_key_values=cache, use_cache=True)
        keys, values, positions = found[index]
        for place, (layer, head) in enumerate(model.shape.heads):
            kept = [int(p) for p in positions[place] if p != 255]
            assert len(kept) == min(5, len(reference))
            assert max(kept) < len(reference)
            for ours, theirs in ((keys, cache.layers[layer].keys), (values, cache.layers[layer].values)):
                expected = theirs[0, head, [len(bos) + p for p in kept]]
                assert torch.allclose(
                    ours[place, : len(kept)], expected, rtol=1e-3, atol=1e-5 * float(theirs.abs().max())
                )
                assert not ours[place, len(kept) :].any()


def test_memories_of_a_trained_model_are_what_its_cache_holds(stories260k: Path) -> None:
    from transformers import AutoModelForCausalLM, DynamicCache

    model = load_model(str(stories260k), ShapeRequest(memory_layers="0-4"), device="cpu", dtype="float32")
    references = references_of(3, vocabulary=512)
    found = by_index(ReferenceEncoder(model).encode(references))
    whole = AutoModelForCausalLM.from_pretrained(stories260k, attn_implementation="eager").eval()
    for index, reference in enumerate(references):
        cache = DynamicCache()
        row = [*model.reference_bos_ids, *reference]
        with torch.no_grad():
            whole(input_ids=torch.tensor([row]), past_key_values=cache, use_cache=True)
        keys, values, positions = found[index]
        for place, (layer, head) in enumerate(model.shape.heads):
            at = [len(model.reference_bos_ids) + int(p) for p in positions[place] if p != 255]
            assert torch.allclose(
                keys[place, : len(at)], cache.layers[layer].keys[0, head, at], rtol=1e-3, atol=1e-4
            )
            assert torch.allclose(
                values[place, : len(at)], cache.layers[layer].values[0, head, at], rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize(
    ("arch", "dtype", "count"),
    [
        ("llama", "float32", 60),
        ("gemma3", "float32", 30),
        ("gpt_neox", "float32", 30),
        ("llama", "bfloat16", 24),
    ],
)
def test_batch_size_neighbours_and_threads_change_no_bit(
    arch: str, dtype: str, count: int, tmp_path: Path
) -> None:
    model = load_model(str(save_tiny_model(tmp_path, arch)), device="cpu", dtype=dtype)
    references = references_of(count, seed=1, most=100)
    whole = by_index(ReferenceEncoder(model, threads=1).encode(references))
    assert sorted(whole) == list(range(count))
    for index in range(0, count, 7):
        alone = by_index(ReferenceEncoder(model, threads=1).encode([references[index]]))
        assert same(alone[0], whole[index])
    backwards = by_index(ReferenceEncoder(model, threads=3, batch_tokens=700).encode(references[::-1]))
    assert all(same(backwards[count - 1 - index], whole[index]) for index in whole)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        unlike = by_index(ReferenceEncoder(model, batch_tokens=3000).encode(references))
    finally:
        torch.set_num_threads(before)
    assert all(same(unlike[index], whole[index]) for index in whole)


def test_the_callers_number_of_threads_stays_as_it_was(llama: LoadedModel) -> None:
    before = torch.get_num_threads()
    list(ReferenceEncoder(llama, threads=2).encode(references_of(5)))
    assert torch.get_num_threads() == before


def test_a_row_is_padded_to_whole_steps_by_its_own_length() -> None:
    assert [padded_length(tokens, 2) for tokens in (1, 6, 7, 14, 128)] == [8, 8, 16, 16, 136]
    assert all(padded_length(n, 3) % LADDER_STEP == 0 for n in range(1, 256))


def test_batches_keep_to_the_budget_and_hold_one_length(llama: LoadedModel) -> None:
    references = references_of(50)
    bos = len(llama.reference_bos_ids)
    for batch in ReferenceEncoder(llama, threads=1, batch_tokens=600).encode(references):
        assert len({padded_length(len(references[index]), bos) for index in batch.indices}) == 1
        assert batch.tokens <= 600
        assert batch.keys.shape == (len(batch.indices), len(llama.shape.heads), 8, llama.shape.head_dim)
        assert batch.positions.dtype == torch.uint8
        assert not batch.keys.requires_grad


def test_memory_heads_are_the_chosen_ones_of_the_whole(tiny_llama: Path) -> None:
    references = references_of(6)
    everything = load_model(str(tiny_llama), ShapeRequest(memory_layers="0-2"), dtype="float32", device="cpu")
    some = load_model(str(tiny_llama), ShapeRequest(memory_heads="0:1;2:0,1"), dtype="float32", device="cpu")
    assert some.shape.heads == ((0, 1), (2, 0), (2, 1))
    at = [everything.shape.heads.index(head) for head in some.shape.heads]
    whole = by_index(ReferenceEncoder(everything).encode(references))
    for index, memory in by_index(ReferenceEncoder(some).encode(references)).items():
        keys, values, positions = whole[index]
        assert same(memory, (keys[at], values[at], positions[at]))


def test_all_tokens_can_be_kept(tiny_llama: Path) -> None:
    request = ShapeRequest(sparse_tokens="all", reference_tokens=12)
    model = load_model(str(tiny_llama), request, dtype="float32", device="cpu")
    for _, _, positions in by_index(
        ReferenceEncoder(model).encode([[5, 6, 7], list(range(20, 32))])
    ).values():
        assert positions.shape == (4, 12)
    (keys, _, positions) = by_index(ReferenceEncoder(model).encode([[5, 6, 7]]))[0]
    assert positions[0].tolist() == [0, 1, 2] + [255] * 9
    assert not keys[:, 3:].any()


def test_queries_for_measuring_errors_are_those_of_evenly_spread_tokens(llama: LoadedModel) -> None:
    from m3build.capture import capture

    reference = references_of(1, seed=4)[0]
    (batch,) = ReferenceEncoder(llama, queries=3).encode([reference])
    assert batch.queries is not None
    shape = llama.shape
    assert batch.queries.shape == (1, len(shape.memory_layers), shape.query_heads, 3, shape.head_dim)
    bos = len(llama.reference_bos_ids)
    row = torch.tensor([[*llama.reference_bos_ids, *reference]])
    at = [bos + (2 * i + 1) * len(reference) // 6 for i in range(3)]
    with torch.no_grad():
        layers = capture(llama.base, row, shape.memory_layers)
    for place, layer in enumerate(layers):
        assert torch.allclose(batch.queries[0, place], layer.rotated_query[0][:, at], rtol=1e-3, atol=1e-5)
    without = by_index(ReferenceEncoder(llama).encode([reference]))[0]
    assert same(without, (batch.keys[0], batch.values[0], batch.positions[0]))


@pytest.mark.parametrize("length", [0, 129])
def test_a_reference_of_no_tokens_or_too_many_is_not_encoded(llama: LoadedModel, length: int) -> None:
    with pytest.raises(ValueError, match=f"has {length} tokens"):
        list(ReferenceEncoder(llama).encode([[5], [5] * length]))


def test_no_references_make_no_batches(llama: LoadedModel) -> None:
    assert list(ReferenceEncoder(llama).encode([])) == []


class Failing(Selector):
    """A rule that runs out of memory."""

    name = "failing"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_which_option_to_lower(llama: LoadedModel, error: Exception) -> None:
    with pytest.raises(ResourceError, match="lower --batch-tokens"):
        list(ReferenceEncoder(llama, selector=Failing(error)).encode(references_of(3)))


def test_another_error_in_a_thread_reaches_the_caller_as_it_is(llama: LoadedModel) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        list(
            ReferenceEncoder(llama, selector=Failing(RuntimeError("something else"))).encode(references_of(3))
        )


def test_keys_that_are_not_finite_are_never_returned(tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32", device="cpu")
    base: Any = model.base
    with torch.no_grad():
        base.layers[1].self_attn.v_proj.weight[:] = float("inf")
    with pytest.raises(MismatchError, match="not finite in float32"):
        list(ReferenceEncoder(model).encode(references_of(2)))


class AskingThreads(Selector):
    """Keeps tokens by their key's norm, and notes how many threads torch has where it runs."""

    name = "asking"

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        self.seen.add(torch.get_num_threads())
        return get_selector("key-norm").scores(layer, references)


@pytest.mark.parametrize("kept", [False, True])
def test_each_batch_has_one_thread_whatever_the_caller_has(llama: LoadedModel, kept: bool) -> None:
    before = torch.get_num_threads()
    asking = AskingThreads()
    encoder = ReferenceEncoder(llama, selector=asking, threads=3, batch_tokens=300)
    try:
        torch.set_num_threads(5)
        with encoder if kept else nullcontext():
            for _ in range(3):
                list(encoder.encode(references_of(30)))
            assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)
    assert asking.seen == {1}


def test_an_encoder_as_a_context_keeps_its_threads_and_ends_them(llama: LoadedModel) -> None:
    import threading

    def own() -> set[int | None]:
        return {t.ident for t in threading.enumerate() if t.name.startswith("m3build-encode")}

    with ReferenceEncoder(llama, threads=2, batch_tokens=300) as encoder:
        list(encoder.encode(references_of(30)))
        begun = own()
        batches = encoder.encode(references_of(30, seed=2))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        list(encoder.encode(references_of(30, seed=3)))
        assert len(begun) == 2
        assert own() == begun
    assert not own()


def test_leaving_the_batches_half_way_ends_the_threads(llama: LoadedModel) -> None:
    import threading

    batches = ReferenceEncoder(llama, threads=2, batch_tokens=300).encode(references_of(30))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("m3build-encode")]
