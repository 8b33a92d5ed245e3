"""Loading: only what memories need, no code from the model directory, and a clear refusal of everything
else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, save_tiny_model, tiny_model, tiny_tokenizer

from m3build.model import ShapeRequest, load_model, load_shape
from m3build.model.device import choose_device, choose_dtype, native_bfloat16
from m3build_formats.errors import CorruptError, M3Error, MismatchError, ResourceError, UsageError


def on_cpu(
    directory: Path, request: ShapeRequest | None = None, dtype: str = "float32", **options: Any
) -> Any:
    return load_model(str(directory), request, device="cpu", dtype=dtype, **options)


def rewrite(directory: Path, name: str, **changes: Any) -> None:
    path = directory / name
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_the_layers_up_to_the_deepest_memory_layer_are_there_and_no_head(
    arch: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = save_tiny_model(tmp_path / "m", arch)
    capfd.readouterr()
    model = on_cpu(directory, ShapeRequest(memory_layers="0,2"))
    assert capfd.readouterr() == ("", "")
    base: Any = model.base
    assert len(base.layers) == 3
    assert not hasattr(base, "lm_head")
    assert not base.training
    assert (model.name, model.facts.architecture) == ("m", "gemma3_text" if arch == "gemma3" else arch)
    assert model.facts.layers == 4
    assert (model.facts.query_heads, model.facts.head_dim) == (4, 16)
    assert model.facts.kv_heads == (4 if arch == "gpt_neox" else 2)
    whole: Any = tiny_model(arch).base_model
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name])


def test_the_reference_bos_stands_after_the_tokenizers_own_bos(tiny_llama: Path, copy: Path) -> None:
    model = on_cpu(tiny_llama)
    text = tiny_tokenizer().encode("Reference:", add_special_tokens=False)
    assert model.reference_bos_ids == (0, *text)
    assert on_cpu(tiny_llama, ShapeRequest(reference_bos="")).reference_bos_ids == (0,)
    rewrite(copy, "tokenizer_config.json", bos_token=None)
    assert on_cpu(copy).reference_bos_ids == tuple(text)


def test_memory3_json_beside_the_weights_is_read(copy: Path) -> None:
    (copy / "memory3.json").write_text(
        json.dumps({"memory_layers": [1, 2], "sparse_tokens": 4}), encoding="utf-8"
    )
    model = on_cpu(copy)
    assert model.shape.memory_layers == (1, 2)
    assert model.shape.sparse_tokens == 4
    assert load_shape(str(copy)) == (model.facts, model.shape)


def test_the_record_is_json_without_any_path(copy: Path) -> None:
    record = on_cpu(copy, dtype="bfloat16").record()
    text = json.dumps(record)
    assert str(copy) not in text
    assert str(copy.parent) not in text
    assert record["name"] == "copy"
    assert record["dtype"] == "bfloat16"
    assert record["rope"]["rope_type"] == "default"
    assert record["attention"][0] == {"layer": 0, "scaling": 0.25, "softcap": None, "sliding_window": None}


def test_the_record_of_a_soft_capped_model_with_windows_says_so(tmp_path: Path) -> None:
    record = on_cpu(save_tiny_model(tmp_path, "gemma2"), ShapeRequest(memory_layers="0-1")).record()
    assert [fact["softcap"] for fact in record["attention"]] == [50.0, 50.0]
    assert [fact["sliding_window"] for fact in record["attention"]] == [256, None]


def test_a_missing_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        load_model(str(tmp_path / "nowhere"))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        load_model(str(tmp_path / "model"))


def test_a_hub_id_that_cannot_be_looked_up_says_what_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ResourceError, match="no directory m3build-tests/none, and the hub cannot be reached"):
        load_model("m3build-tests/none")


def test_a_directory_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickled weights only"):
        on_cpu(copy)


def test_a_directory_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no safetensors weights"):
        on_cpu(copy)


def test_truncated_weights_are_corrupt(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CorruptError, match="weight file is broken"):
        on_cpu(copy)


def test_weights_that_lack_a_tensor_are_never_filled_up_with_random_ones(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptError, match=r"lack 1 of the tensors.*k_proj"):
        on_cpu(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    rewrite(copy, "config.json", intermediate_size=97)
    with pytest.raises((CorruptError, MismatchError)):
        on_cpu(copy)


def test_a_tokenizer_that_cannot_be_used_is_a_usage_error(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "None"}}')
    with pytest.raises(UsageError, match="tokenizer cannot be loaded"):
        on_cpu(copy)


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_a_mismatch(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, "llama", vocab_size=300)
    with pytest.raises(MismatchError, match="the tokenizer has 384 tokens, the model 300"):
        on_cpu(directory)


@pytest.mark.parametrize(
    ("kind", "shape", "complaint"),
    [
        ("bert", {"hidden_size": 32, "num_attention_heads": 2}, "is a bert model, an encoder"),
        ("modernbert", {}, "is a modernbert model, which transformers has no causal"),
        ("t5", {"d_model": 32}, "is a t5 model, an encoder-decoder"),
        ("bloom", {"hidden_size": 32, "n_head": 2}, "is a bloom model, whose attention does not go through"),
        ("mamba", {"hidden_size": 32}, "is a mamba model, whose layers are not all attention"),
        ("qwen3_next", {}, "is a qwen3_next model, whose layers are not all attention (linear_attention)"),
        ("gemma3", {}, "is a gemma3 model, which is made of several models"),
        ("gemma4_text", {}, "is a gemma4_text model"),
        ("trocr", {}, "is a trocr model"),
    ],
)
def test_an_architecture_that_cannot_write_memories_is_refused_by_name(
    kind: str, shape: dict[str, int], complaint: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(kind, **shape).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MismatchError) as caught:
        load_model(str(tmp_path))
    assert complaint in str(caught.value)


def test_attention_with_sinks_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=384, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_local_experts=2, num_experts_per_tok=1,
        max_position_embeddings=64, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(MismatchError, match="GptOssAttention passes s_aux"):
        on_cpu(tmp_path)


def test_an_unknown_architecture_is_a_usage_error(copy: Path) -> None:
    rewrite(copy, "config.json", model_type="llama17")
    with pytest.raises(UsageError, match=r"config\.json.*llama17"):
        on_cpu(copy)


def test_code_in_a_model_directory_is_not_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    (copy / "configuration_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass EvilConfig: pass\n")
    rewrite(copy, "config.json", model_type="evil", auto_map={"AutoConfig": "configuration_evil.EvilConfig"})
    with pytest.raises(M3Error):
        on_cpu(copy)
    assert not marker.exists()


def test_an_option_that_does_not_exist_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match="no dtype 'int8'"):
        load_model(str(tiny_llama), dtype="int8")
    with pytest.raises(UsageError, match="no device 'tpu'"):
        load_model(str(tiny_llama), device="tpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UsageError, match="finds no cuda device"):
        choose_device("cuda")


def test_bfloat16_is_chosen_only_where_the_processor_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    cpu = torch.device("cpu")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    for able, expected in (
        ({"architecture": "x86_64", "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "amx_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "avx512_f": True}, torch.float32),
        ({"architecture": "aarch64", "bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "neon": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert choose_dtype("auto", cpu) == expected
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64", "bf16": True})
    assert not native_bfloat16(cpu)
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
