"""Memories as the compiler writes them, against a slow transcription of the paper's formula in float64 that
shares no code with it.

The transcription (tests/reference) computes the whole forward pass itself from the weight files. Keys,
values, scores and kept tokens are compared for every tested architecture, with and without grouped queries,
for references of many lengths that are padded and batched together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, tiny_model, tiny_tokenizer
from reference.slow_memory import slow_memory

from m3build.encode import ReferenceEncoder
from m3build.model import ShapeRequest, load_model

LENGTHS = (1, 3, 7, 8, 9, 30, 61)
LAYERS = (0, 2)
SLOTS = 5
RULES = ("memory3", "memory3-exp", "value-norm", "observed", "key-norm")


def save_model(directory: Path, arch: str, **over: Any) -> Path:
    """A tiny model whose norms, biases and attention are far from uniform."""
    model = tiny_model(arch, seed=5, **over)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.15 if parameter.dim() == 2 else 0.3)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def references() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(2, 384, length).tolist() for length in LENGTHS]


def assert_memories_follow_the_formula(directory: Path, arch: str, rule: str) -> None:
    request = ShapeRequest(memory_layers=list(LAYERS), sparse_tokens=SLOTS, selection=rule)
    model = load_model(str(directory), request, device="cpu", dtype="float32")
    given = references()
    bos = list(model.reference_bos_ids)
    assert len(bos) > 1
    compared = 0
    for batch in ReferenceEncoder(model).encode(given):
        for at, index in enumerate(batch.indices):
            truth = slow_memory(directory, arch, bos, given[index], list(LAYERS), SLOTS, rule)
            for number, (layer, head) in enumerate(model.shape.heads):
                expected = truth[layer]
                # The transcription ranks by the norm itself; the rule prefers small ones.
                scores = -expected["scores"][head] if rule == "key-norm" else expected["scores"][head]
                positions = batch.positions[at, number].numpy()
                kept = positions[positions != 255].astype(int)
                count = min(SLOTS, len(given[index]))
                assert len(kept) == count
                assert sorted(set(kept.tolist())) == kept.tolist()
                dropped = np.setdiff1d(np.arange(len(scores)), kept)
                # Near ties may fall either way in float32; anything else may not.
                slack = 1e-4 * (np.abs(scores).max() + 1e-9)
                if len(dropped):
                    assert scores[kept].min() >= scores[dropped].max() - slack
                if kept.tolist() == expected["positions"][head].tolist():
                    for mine, theirs in ((batch.keys, "keys"), (batch.values, "values")):
                        np.testing.assert_allclose(
                            mine[at, number, :count].numpy(), expected[theirs][head], rtol=2e-4, atol=2e-4
                        )
                    compared += 1
                assert not batch.keys[at, number, count:].any()
                assert not batch.values[at, number, count:].any()
    # With another order of preference the transcription's own choice is another one, except for the shortest
    # references.
    assert compared >= (0.2 if rule == "key-norm" else 0.95) * len(given) * len(model.shape.heads)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_memories_of_every_architecture_follow_the_formula(arch: str, tmp_path: Path) -> None:
    assert_memories_follow_the_formula(save_model(tmp_path, arch), arch, "memory3")


@pytest.mark.parametrize("rule", RULES[1:])
def test_every_rule_follows_its_formula(rule: str, tmp_path: Path) -> None:
    assert_memories_follow_the_formula(save_model(tmp_path, "llama"), "llama", rule)


@pytest.mark.parametrize(("query_heads", "kv_heads"), [(4, 4), (4, 1), (6, 3)])
def test_groups_of_query_heads_are_summed_whatever_their_number(
    query_heads: int, kv_heads: int, tmp_path: Path
) -> None:
    directory = save_model(
        tmp_path, "qwen3", num_attention_heads=query_heads, num_key_value_heads=kv_heads, hidden_size=96
    )
    assert_memories_follow_the_formula(directory, "qwen3", "memory3")


def test_a_soft_cap_that_bites_and_local_and_global_layers_take_part(tmp_path: Path) -> None:
    capped = save_model(
        tmp_path / "gemma2", "gemma2", attn_logit_softcapping=2.0, query_pre_attn_scalar=4, sliding_window=8
    )
    assert_memories_follow_the_formula(capped, "gemma2", "memory3")
    mixed = save_model(
        tmp_path / "gemma3",
        "gemma3",
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=8,
    )
    assert_memories_follow_the_formula(mixed, "gemma3", "observed")


def test_memories_of_a_trained_model_follow_the_formula(stories260k: Path) -> None:
    request = ShapeRequest(memory_layers=[0, 1, 3])
    model = load_model(str(stories260k), request, device="cpu", dtype="float32")
    text = "Once upon a time there was a little girl named Lily. She loved to play outside with her friends."
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    truth = slow_memory(stories260k, "llama", list(model.reference_bos_ids), ids, [0, 1, 3], 8, "memory3")
    (batch,) = ReferenceEncoder(model).encode([ids])
    for number, (layer, head) in enumerate(model.shape.heads):
        assert batch.positions[0, number].tolist() == truth[layer]["positions"][head].tolist()
        np.testing.assert_allclose(
            batch.keys[0, number].numpy(), truth[layer]["keys"][head], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            batch.values[0, number].numpy(), truth[layer]["values"][head], rtol=1e-4, atol=1e-4
        )
