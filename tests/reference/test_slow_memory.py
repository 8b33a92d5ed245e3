"""The slow oracle is what transformers computes, and what the Memory³ paper says to keep of it."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, save_tiny_model, tiny_model
from reference.exact_transformers import NothingInFloat32, exact_copy, wild_model
from reference.slow_memory import (
    RULES,
    LayerRecord,
    choose,
    scale_of,
    slow_forward,
    slow_last_hidden,
    slow_memory,
    soft_cap_of,
    token_scores,
)

BOS = [0, 50, 69, 70]
REFERENCE = [17, 301, 17, 254, 9, 88, 88, 133, 42, 7, 310, 17, 205]
LAYERS = [0, 1, 2, 3]

# What the defaults leave untouched: short windows, soft-caps that bite, other rotary shares, biases.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 0.1}),
    ("mistral", {"sliding_window": 5}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2, "head_dim": 24}),
    ("gemma2", {"sliding_window": 5, "attn_logit_softcapping": 0.7, "query_pre_attn_scalar": 9}),
    ("gemma3", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    ("gemma3", {"attn_logit_softcapping": 0.7, "query_pre_attn_scalar": 9}),
    (
        "phi3",
        {
            "sliding_window": 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
]
CASES = [pytest.param(arch, {}, id=arch) for arch in ARCHITECTURES] + [
    pytest.param(arch, over, id=f"{arch}-{'-'.join(over)}") for arch, over in VARIANTS
]


def transformers_forward(model: Any, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Transformers' own forward pass, wholly in float64, with queries and keys caught before RoPE."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()  # without a config it keeps all tokens of sliding layers too
    exact = exact_copy(model)
    with NothingInFloat32(), torch.no_grad():
        module = importlib.import_module(type(model).__module__)
        before: list[tuple[Any, Any]] = []
        apply = module.apply_rotary_pos_emb

        def caught(q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
            before.append((q[0].numpy(), k[0].numpy()))
            return apply(q, k, *args, **kwargs)

        monkeypatch.setattr(module, "apply_rotary_pos_emb", caught)
        out = exact(
            torch.tensor([ids]),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
            output_attentions=True,
        )
    assert out.hidden_states[-1].dtype == torch.float64
    return {
        "hidden": [h[0].numpy() for h in out.hidden_states],
        "attention": [a[0].numpy() for a in out.attentions],
        "queries": [q for q, _ in before],
        "keys": [k for _, k in before],
        "rotated_keys": [layer.keys[0].numpy() for layer in cache.layers],
        "values": [layer.values[0].numpy() for layer in cache.layers],
    }


def assert_same_forward(model: Any, arch: str, ids: list[int], expected: dict[str, Any]) -> list[LayerRecord]:
    layers = model.config.num_hidden_layers
    records = slow_forward(model, arch, ids, layers - 1)
    for name in ("attention", "queries", "keys", "rotated_keys", "values"):
        assert len(expected[name]) == layers
    for layer, record in enumerate(records):
        for name in ("hidden", "attention", "queries", "keys", "rotated_keys", "values"):
            np.testing.assert_allclose(
                getattr(record, name),
                expected[name][layer],
                rtol=1e-9,
                atol=1e-9,
                err_msg=f"{name} of layer {layer}",
            )
    np.testing.assert_allclose(
        slow_last_hidden(model, arch, records), expected["hidden"][layers], rtol=1e-9, atol=1e-9
    )
    return records


def scores_from_transformers(
    model: Any, arch: str, seen: dict[str, Any], bos: int, layer: int, rule: str
) -> Any:
    """The rules once more, as array expressions over what transformers computed."""
    heads, groups = len(seen["queries"][layer]), len(seen["keys"][layer])
    if rule == "key-norm":
        return np.linalg.norm(seen["rotated_keys"][layer][:, bos:], axis=-1)
    if rule == "observed":
        received = seen["attention"][layer][:, bos:, bos:]
    else:
        q = seen["queries"][layer][:, bos:]
        k = np.repeat(seen["keys"][layer][:, bos:], heads // groups, axis=0)
        logits = np.einsum("hid,hjd->hij", q, k) * scale_of(model.config, arch)
        cap = soft_cap_of(model.config, arch)
        if cap is not None:
            logits = np.tanh(logits / cap) * cap
        received = np.exp(logits)
        if rule != "memory3-exp":
            received /= received.sum(axis=-1, keepdims=True)
    scores = received.sum(axis=1).reshape(groups, heads // groups, -1).sum(axis=1)
    if rule == "value-norm":
        scores = scores * np.linalg.norm(seen["values"][layer][:, bos:], axis=-1)
    return scores


@pytest.mark.parametrize(("arch", "over"), CASES)
def test_forward_and_memories_equal_transformers_in_float64(
    arch: str, over: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wild_model(arch, **over)
    seen = transformers_forward(model, BOS + REFERENCE, monkeypatch)
    assert_same_forward(model, arch, BOS + REFERENCE, seen)
    uniform = 1 / len(BOS + REFERENCE)
    sharpest = max(np.abs(a[:, -1] - uniform).max() for a in seen["attention"])
    assert sharpest > 0.04, "attention too flat to tell anything"
    for rule in RULES:
        memory = slow_memory(model, arch, BOS, REFERENCE, LAYERS, 4, rule)
        for layer, part in memory.items():
            expected = scores_from_transformers(model, arch, seen, len(BOS), layer, rule)
            np.testing.assert_allclose(part["scores"], expected, rtol=1e-9, atol=1e-9)
            for head, chosen in enumerate(part["positions"]):
                at = chosen + len(BOS)
                kept = np.isin(np.arange(len(REFERENCE)), chosen)
                assert expected[head][kept].min() >= expected[head][~kept].max() - 1e-9
                np.testing.assert_allclose(
                    part["keys"][head], seen["rotated_keys"][layer][head][at], rtol=1e-9, atol=1e-9
                )
                np.testing.assert_allclose(
                    part["values"][head], seen["values"][layer][head][at], rtol=1e-9, atol=1e-9
                )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unaltered_transformers_in_float32_differs_only_by_rounding(arch: str) -> None:
    from transformers import DynamicCache

    model = tiny_model(arch)
    records = slow_forward(model, arch, BOS + REFERENCE, 3)
    cache: Any = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([BOS + REFERENCE]), past_key_values=cache, use_cache=True)
    for record, layer in zip(records, cache.layers, strict=True):
        np.testing.assert_allclose(record.rotated_keys, layer.keys[0].numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(record.values, layer.values[0].numpy(), rtol=0, atol=1e-5)


def test_forward_and_memories_of_the_trained_llama_equal_transformers_in_float64(
    stories260k: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(stories260k)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    bos = [1, *tokenizer.encode("Reference:", add_special_tokens=False)]
    reference = tokenizer.encode(text, add_special_tokens=False)
    seen = transformers_forward(model, bos + reference, monkeypatch)
    assert_same_forward(model, "llama", bos + reference, seen)
    for rule in RULES:
        memory = slow_memory(stories260k, "llama", bos, reference, [0, 2, 4], 8, rule)
        for layer, part in memory.items():
            expected = scores_from_transformers(model, "llama", seen, len(bos), layer, rule)
            np.testing.assert_allclose(part["scores"], expected, rtol=1e-9, atol=1e-9)
            assert part["positions"].shape == (4, 8)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt_neox"])
def test_directory_and_model_give_the_same_memory(tmp_path: Path, arch: str) -> None:
    directory = save_tiny_model(tmp_path, arch)
    a = slow_memory(directory, arch, BOS, REFERENCE, [1], 4)
    b = slow_memory(tiny_model(arch), arch, BOS, REFERENCE, [1], 4)
    for name in ("scores", "positions", "keys", "values"):
        np.testing.assert_array_equal(a[1][name], b[1][name])


def hand_made_record() -> LayerRecord:
    """One BOS token and three of the reference, two query heads on one key-value head, one dimension."""
    log2, log3 = math.log(2), math.log(3)
    queries = np.array([[[9.0], [1.0], [0.0], [0.0]], [[9.0], [0.0], [0.0], [2.0]]])
    keys = np.array([[[50.0], [0.0], [log2], [log3]]])
    values = np.array([[[7.0], [4.0], [-1.0], [0.5]]])
    attention = np.zeros((2, 4, 4))
    attention[0] = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.5, 0], [0.125, 0.125, 0.25, 0.5]])
    attention[1] = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    return LayerRecord(np.zeros((4, 1)), queries, keys, values, queries, -keys, attention)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # softmax rows: (1, 2, 3)/6 and (1, 4, 9)/14 where a query is not zero, else thirds (four of them)
        ("memory3", [4 / 3 + 1 / 6 + 1 / 14, 4 / 3 + 2 / 6 + 4 / 14, 4 / 3 + 3 / 6 + 9 / 14]),
        (
            "value-norm",
            [4 * (4 / 3 + 1 / 6 + 1 / 14), 4 / 3 + 2 / 6 + 4 / 14, 0.5 * (4 / 3 + 3 / 6 + 9 / 14)],
        ),
        ("memory3-exp", [4 + 1 + 1, 4 + 2 + 4, 4 + 3 + 9]),
        ("observed", [0.5 + 0.25 + 0.125, 0.5 + 0.25, 0.5 + 1]),
        ("key-norm", [0, math.log(2), math.log(3)]),
    ],
)
def test_scores_of_a_hand_made_layer_are_those_worked_out_by_hand(rule: str, expected: list[float]) -> None:
    scores = token_scores(hand_made_record(), 1, rule, 0, 1.0, None)
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-15)


def test_scale_and_soft_cap_apply_to_the_logits() -> None:
    capped = token_scores(hand_made_record(), 1, "memory3-exp", 0, 0.5, 0.1)
    first = math.exp(0.1 * math.tanh(0.5 * math.log(3) / 0.1))
    second = math.exp(0.1 * math.tanh(math.log(3) / 0.1))
    assert capped[2] == pytest.approx(4 + first + second, rel=1e-12)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_of_layer_0_know_neither_the_reference_bos_nor_positions(arch: str) -> None:
    model = wild_model(arch)
    with_bos = slow_memory(model, arch, BOS, REFERENCE, [0], 4)[0]["scores"]
    without = slow_memory(model, arch, [], REFERENCE, [0], 4)[0]["scores"]
    backwards = slow_memory(model, arch, BOS, REFERENCE[::-1], [0], 4)[0]["scores"]
    np.testing.assert_array_equal(with_bos, without)
    np.testing.assert_allclose(with_bos, backwards[:, ::-1], rtol=1e-12)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_of_a_key_value_head_add_up_to_its_query_heads_times_the_tokens(arch: str) -> None:
    model = wild_model(arch)
    group = 1 if arch == "gpt_neox" else 2
    for part in slow_memory(model, arch, BOS, REFERENCE, LAYERS, 4).values():
        np.testing.assert_allclose(part["scores"].sum(axis=1), group * len(REFERENCE), rtol=1e-12)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equal_tokens_tie_exactly_in_layer_0_and_the_earlier_ones_are_kept(arch: str) -> None:
    part = slow_memory(wild_model(arch), arch, BOS, [88] * 11, [0], 4)[0]
    assert all(len(set(scores.tolist())) == 1 for scores in part["scores"])
    assert part["positions"].tolist() == [[0, 1, 2, 3]] * len(part["positions"])


def test_choice_is_ascending_and_ties_go_to_the_earlier_token() -> None:
    assert choose(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3) == [1, 2, 3]
    assert choose(np.array([0.0, 0.0, 1.0]), 2) == [0, 2]
    assert choose(np.array([1.0]), 8) == [0]


def test_short_and_empty_references_keep_what_there_is() -> None:
    model = tiny_model("llama")
    short = slow_memory(model, "llama", BOS, [5, 6], [1], 8)[1]
    assert short["positions"].tolist() == [[0, 1], [0, 1]]
    assert short["keys"].shape == short["values"].shape == (2, 2, 16)
    empty = slow_memory(model, "llama", BOS, [], [1], 8)[1]
    assert empty["scores"].shape == empty["positions"].shape == (2, 0)
    assert empty["keys"].shape == (2, 0, 16)


def test_unknown_rules_architectures_and_rotary_types_are_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="rule"):
        slow_memory(model, "llama", BOS, REFERENCE, [0], 4, "newest")
    with pytest.raises(ValueError, match="architecture"):
        slow_memory(model, "gpt2", BOS, REFERENCE, [0], 4)
    with pytest.raises(ValueError, match="not a qwen2"):
        slow_memory(model, "qwen2", BOS, REFERENCE, [0], 4)
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ValueError, match="linear"):
        slow_memory(tiny_model("llama", rope_parameters=linear), "llama", BOS, REFERENCE, [0], 4)
