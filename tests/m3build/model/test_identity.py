"""Fingerprint and probe: the same model is recognised wherever it lies and however it runs; another one is
not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny_model

from m3build.model import ShapeRequest, fingerprint, load_model, matches_probe
from m3build.model.probe import PROJECTIONS


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "elsewhere"))


def change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes, indent=7), encoding="utf-8")


def test_a_fingerprint_does_not_depend_on_where_the_model_lies(tiny_llama: Path, copy: Path) -> None:
    assert fingerprint(copy) == fingerprint(tiny_llama)
    assert len(fingerprint(copy)) == 64


def test_what_shapes_no_key_or_value_is_not_part_of_the_fingerprint(tiny_llama: Path, copy: Path) -> None:
    change(
        copy / "config.json",
        transformers_version="9.9",
        _name_or_path="/secret",
        dtype="float16",
        use_cache=False,
    )
    change(copy / "tokenizer_config.json", chat_template="{{ x }}", model_max_length=7)
    (copy / "generation_config.json").write_text("{}")
    (copy / "memory3.json").write_text('{"sparse_tokens": 4}')
    assert fingerprint(copy) == fingerprint(tiny_llama)


@pytest.mark.parametrize(
    "alter",
    [
        lambda d: change(d / "config.json", rms_norm_eps=1e-3),
        lambda d: change(d / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 7.0}),
        lambda d: change(d / "tokenizer.json", post_processor=None, version="1.1"),
        lambda d: change(d / "tokenizer_config.json", bos_token="</s>"),
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-1] + b"\x01"
        ),
        lambda d: shutil.copy(d / "model.safetensors", d / "model-2.safetensors"),
    ],
)
def test_config_weights_and_tokenizer_are_part_of_the_fingerprint(
    alter: Any, tiny_llama: Path, copy: Path
) -> None:
    alter(copy)
    assert fingerprint(copy) != fingerprint(tiny_llama)


def test_the_bytes_of_sharded_weights_are_hashed_in_the_order_of_their_names(tmp_path: Path) -> None:
    from models import tiny_model

    for name in ("a", "b"):
        tiny_model("llama").save_pretrained(tmp_path / name, max_shard_size="100KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


def probe_of(directory: Path, dtype: str = "float32") -> list[list[float]]:
    return load_model(str(directory), ShapeRequest(memory_layers="0-3"), device="cpu", dtype=dtype).probe


def test_a_probe_is_some_numbers_per_memory_layer_that_json_keeps(tiny_llama: Path) -> None:
    probe = probe_of(tiny_llama)
    assert [len(layer) for layer in probe] == [2 * PROJECTIONS] * 4
    assert json.loads(json.dumps(probe)) == probe
    assert probe_of(tiny_llama) == probe


def test_a_model_is_recognised_in_another_number_type(tiny_llama: Path) -> None:
    exact, coarse = probe_of(tiny_llama), probe_of(tiny_llama, "bfloat16")
    assert matches_probe(exact, exact, "float32", "float32")
    assert matches_probe(coarse, exact, "bfloat16", "float32")
    assert not matches_probe(coarse, exact, "float32", "float32")


def test_another_model_is_not_recognised(tiny_llama: Path, tmp_path: Path) -> None:
    other = probe_of(save_tiny_model(tmp_path, "llama", seed=1))
    assert not matches_probe(other, probe_of(tiny_llama), "bfloat16")


def test_a_model_that_differs_in_one_layer_is_not_recognised(tiny_llama: Path, copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = "model.layers.3.self_attn.v_proj.weight"
    torch.manual_seed(0)
    weights[name] = weights[name] + 0.5 * weights[name].std() * torch.randn_like(weights[name])
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert not matches_probe(probe_of(copy), probe_of(tiny_llama), "bfloat16")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p[:-1],
        lambda p: [layer[:-1] for layer in p],
        lambda p: [[float("nan")] * len(layer) for layer in p],
        lambda p: [[float("inf")] * len(layer) for layer in p],
    ],
)
def test_a_probe_of_another_shape_or_without_finite_numbers_matches_nothing(
    spoil: Any, tiny_llama: Path
) -> None:
    probe = probe_of(tiny_llama)
    assert not matches_probe(spoil(probe), probe, "float32")
    assert not matches_probe(probe, spoil(probe), "float32")
