"""Capture: what it takes equals what the model computes, it stops early, it stays differentiable, and it
leaves nothing behind."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, tiny_model
from torch import nn

from m3build.capture import ROTARY_NAME, LayerCapture, capture, capture_each
from m3build_formats.errors import MismatchError


def ids_of(rows: int = 2, tokens: int = 24, vocabulary: int = 384) -> torch.Tensor:
    return torch.randint(2, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(5))


def cached(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
    """Keys and values of all layers after a full forward pass with transformers' own cache and eager
    attention."""
    from transformers import DynamicCache

    model.set_attn_implementation("eager")
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    return cache


def attention_of(layer: nn.Module) -> nn.Module:
    found = getattr(layer, "self_attn", None) or getattr(layer, "attention", None)
    assert isinstance(found, nn.Module)
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_keys_and_values_equal_those_of_a_full_forward_pass_with_the_cache_on(arch: str) -> None:
    model = tiny_model(arch, initializer_range=0.2)
    ids = ids_of()
    cache = cached(model, ids)
    with torch.no_grad():
        found = capture(model.base_model, ids, [0, 2, 3])
    assert [layer.layer for layer in found] == [0, 2, 3]
    for layer in found:
        for ours, theirs in (
            (layer.rotated_key, cache.layers[layer.layer].keys),
            (layer.value, cache.layers[layer.layer].values),
        ):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_queries_and_keys_before_rope_turn_into_those_after_it_by_the_models_own_rotation(arch: str) -> None:
    """At position 0 RoPE turns nothing; elsewhere lengths stay and something moved."""
    with torch.no_grad():
        layer = capture(tiny_model(arch).base_model, ids_of(), [1])[0]
    for before, after in ((layer.query, layer.rotated_query), (layer.key, layer.rotated_key)):
        assert torch.allclose(before[:, :, 0], after[:, :, 0], atol=1e-6)
        assert torch.allclose(before.norm(dim=-1), after.norm(dim=-1), rtol=1e-4)
        assert not torch.allclose(before[:, :, 1:], after[:, :, 1:], atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize("arch", ["mistral", "gemma2", "gemma3", "phi3"])
def test_sliding_windows_shorter_than_the_row_are_kept_to(arch: str) -> None:
    model = tiny_model(arch, initializer_range=0.2, sliding_window=5)
    ids = ids_of()
    cache = cached(model, ids)
    with torch.no_grad():
        layer = capture(model.base_model, ids, [3])[0]
    tail = cache.layers[3].keys.shape[2]
    theirs = cache.layers[3].keys
    assert torch.allclose(
        layer.rotated_key[:, :, -tail:], theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max())
    )


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gemma3"])
def test_right_padding_needs_no_mask(arch: str) -> None:
    model = tiny_model(arch, initializer_range=0.2, **({"sliding_window": 6} if arch != "llama" else {}))
    ids = ids_of()
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    with torch.no_grad():
        without = capture(model.base_model, ids, [3])[0]
        masked = capture(model.base_model, ids, [3], attention_mask=mask)[0]
    scale = float(without.value.abs().max())
    assert torch.allclose(without.value[0, :, :15], masked.value[0, :, :15], rtol=1e-4, atol=1e-5 * scale)
    assert torch.allclose(without.value[1], masked.value[1], rtol=1e-4, atol=1e-5 * scale)


def test_keys_and_values_of_a_trained_model_equal_the_cache(stories260k: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(stories260k).eval()
    ids = ids_of(3, 100, 512)
    cache = cached(model, ids)
    with torch.no_grad():
        for layer in capture(model.base_model, ids, range(5)):
            assert torch.allclose(layer.rotated_key, cache.layers[layer.layer].keys, rtol=1e-4, atol=1e-5)
            assert torch.allclose(layer.value, cache.layers[layer.layer].values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_deepest_layer_stops_once_its_keys_and_values_are_there(arch: str) -> None:
    base = tiny_model(arch).base_model
    calls: list[str] = []
    for number, layer in enumerate(base.layers):
        attention = attention_of(layer)
        output = attention.dense if arch == "gpt_neox" else attention.o_proj
        for name, module in (("output", output), ("mlp", layer.mlp), ("attention", attention)):
            label = f"{name} {number}"
            module.register_forward_pre_hook(lambda *_, label=label: calls.append(label))
    norm = base.final_layer_norm if arch == "gpt_neox" else base.norm
    norm.register_forward_pre_hook(lambda *_: calls.append("norm"))
    with torch.no_grad():
        capture(base, ids_of(), [0, 2])
    ran = {"attention 0", "output 0", "mlp 0", "attention 1", "output 1", "mlp 1", "attention 2"}
    assert set(calls) == ran
    assert len(calls) == len(ran)


def test_layers_arrive_one_by_one_in_order() -> None:
    arrived: list[int] = []
    with torch.no_grad():
        capture_each(
            tiny_model("llama").base_model, ids_of(), [3, 1], lambda layer: arrived.append(layer.layer)
        )
    assert arrived == [1, 3]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_gradient_reaches_the_embedding_through_captured_keys(arch: str) -> None:
    base = tiny_model(arch).base_model
    layer = capture(base, ids_of(), [0, 2])[1]
    layer.rotated_key.square().sum().backward()
    gradient = base.get_input_embeddings().weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_embeddings_can_be_given_in_place_of_ids() -> None:
    base, ids = tiny_model("llama").base_model, ids_of()
    with torch.no_grad():
        by_ids = capture(base, ids, [1])[0]
        by_embeddings = capture(base, None, [1], inputs_embeds=base.get_input_embeddings()(ids))[0]
    assert torch.equal(by_ids.rotated_key, by_embeddings.rotated_key)


def state_of(base: Any) -> tuple[Any, ...]:
    module = sys.modules[type(base).__module__]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules())
    return base.config._attn_implementation, getattr(module, ROTARY_NAME), hooks, base.config.to_dict()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_capture_leaves_the_model_and_its_module_as_they_were(arch: str) -> None:
    model = tiny_model(arch)
    before, ids = state_of(model.base_model), ids_of()
    with torch.no_grad():
        logits = model(ids).logits
        capture(model.base_model, ids, [0, 1])
        assert state_of(model.base_model) == before
        assert torch.equal(model(ids).logits, logits)


def test_nothing_stays_patched_after_an_error_in_the_forward_pass() -> None:
    base = tiny_model("qwen3").base_model
    before = state_of(base)
    with pytest.raises(IndexError):
        capture(base, torch.full((1, 4), 10_000), [1])
    assert state_of(base) == before


def test_nothing_stays_patched_after_an_error_of_the_receiver() -> None:
    base = tiny_model("gemma2").base_model
    before = state_of(base)

    def fail(layer: LayerCapture) -> None:
        raise KeyError(layer.layer)

    with pytest.raises(KeyError):
        capture_each(base, ids_of(), [1], fail)
    assert state_of(base) == before


def test_a_layer_that_the_model_does_not_have_is_a_mismatch() -> None:
    base = tiny_model("llama").base_model
    before = state_of(base)
    with pytest.raises(MismatchError, match="layer 9"):
        capture(base, ids_of(), [9])
    assert state_of(base) == before


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_two_threads_capture_from_one_model_while_a_third_uses_it_plainly(arch: str) -> None:
    model = tiny_model(arch, initializer_range=0.2)
    before = state_of(model.base_model)
    rows = [ids_of(1, length) for length in (12, 20)]
    with torch.no_grad():
        alone = [capture(model.base_model, ids, [1, 2]) for ids in rows]
        logits = model(rows[0]).logits
    start = threading.Barrier(3)

    def capturing(ids: torch.Tensor, expected: list[LayerCapture]) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(30):
                again = capture(model.base_model, ids, [1, 2])
                for ours, theirs in zip(again, expected, strict=True):
                    assert torch.equal(ours.query, theirs.query)
                    assert torch.equal(ours.rotated_key, theirs.rotated_key)

    def plain() -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(30):
                assert torch.allclose(model(rows[0]).logits, logits, atol=1e-5)

    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(capturing, *pair) for pair in zip(rows, alone, strict=True)]
        work.append(pool.submit(plain))
        for future in work:
            future.result()
    assert state_of(model.base_model) == before


def test_heads_and_rows_of_a_capture_can_be_chosen() -> None:
    with torch.no_grad():
        layer = capture(tiny_model("llama").base_model, ids_of(), [1])[0]
    second = layer.heads([1]).rows(1)
    assert torch.equal(second.key, layer.key[:1, 1:])
    assert torch.equal(second.query, layer.query[:1, 2:])
    assert torch.equal(second.value, layer.value[:1, 1:])
    assert layer.heads([0, 1]) is layer


def test_attention_with_sinks_is_refused_by_name() -> None:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_local_experts=2, num_experts_per_tok=1,
        max_position_embeddings=64, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    base = AutoModel.from_config(config).eval()
    with pytest.raises(MismatchError, match=r"GptOssAttention.*s_aux"), torch.no_grad():
        capture(base, ids_of(1, 8, 64), [0])


def test_attention_that_runs_twice_in_a_layer_is_refused_by_name() -> None:
    base = tiny_model("llama").base_model
    attention = attention_of(base.layers[1])
    once = attention.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        once(*args, **kwargs)
        return once(*args, **kwargs)

    attention.forward = twice  # type: ignore[method-assign]
    with pytest.raises(MismatchError, match="LlamaAttention runs attention twice"), torch.no_grad():
        capture_each(base, ids_of(), [1], lambda _: None, stop=False)
