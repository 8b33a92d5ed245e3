"""A model that is in memory already is taken for the bank's only if it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, TRAINING_TEXT, save_tiny_model, tiny_model, tiny_tokenizer

from m3build.encode import ReferenceEncoder
from m3build.model import ShapeRequest, load_model
from m3build.model.live import loaded_from
from m3build_formats.errors import MismatchError, UsageError


def manifest_of(model: Any) -> Any:
    """The two sections of a manifest that say which model a bank's memories are of, as JSON keeps them."""
    memory = model.shape.record()
    memory["memory_heads"] = [list(model.shape.heads_of(layer)) for layer in model.shape.memory_layers]
    return SimpleNamespace(**json.loads(json.dumps({"model": model.record(), "memory": memory})))


@pytest.fixture(scope="module")
def manifest(tiny_llama: Path) -> Any:
    return manifest_of(load_model(str(tiny_llama), device="cpu", dtype="float32"))


def changed(manifest: Any, section: str, **values: Any) -> Any:
    """A manifest with other values; None takes a key away."""
    sections = {"model": dict(manifest.model), "memory": dict(manifest.memory)}
    sections[section].update(values)
    return SimpleNamespace(
        **{name: {k: v for k, v in part.items() if v is not None} for name, part in sections.items()}
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_live_model_writes_the_memories_of_the_loaded_one_bit_for_bit(arch: str, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "m", arch)
    request = ShapeRequest(memory_layers="0,2", sparse_tokens=4)
    loaded = load_model(str(directory), request, device="cpu", dtype="float32")
    whole = tiny_model(arch)
    live = loaded_from(whole, tiny_tokenizer(), manifest_of(loaded))
    assert live.base is whole.base_model
    assert len([*live.base.get_submodule("layers").children()]) == 4
    assert (live.shape, live.rope, live.probe) == (loaded.shape, loaded.rope, loaded.probe)
    assert live.reference_bos_ids == loaded.reference_bos_ids
    references = [[7, 300, 5, 9, 44, 8, 201, 3, 90][:length] for length in (1, 3, 9)]
    for mine, theirs in zip(
        ReferenceEncoder(live, threads=1).encode(references),
        ReferenceEncoder(loaded, threads=1).encode(references),
        strict=True,
    ):
        assert mine.indices == theirs.indices
        assert torch.equal(mine.positions, theirs.positions)
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)


def test_the_model_is_left_as_it_was(manifest: Any) -> None:
    model = tiny_model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model(ids).logits
        implementation = model.config._attn_implementation
        loaded_from(model, tiny_tokenizer(), manifest)
        assert torch.equal(model(ids).logits, logits)
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_same_model_in_another_number_type_is_the_same_model(manifest: Any, dtype: torch.dtype) -> None:
    live = loaded_from(tiny_model("llama").to(dtype), tiny_tokenizer(), manifest)
    assert live.dtype == dtype


def test_a_model_without_its_head_will_do(manifest: Any) -> None:
    base = tiny_model("llama").base_model
    assert loaded_from(base, tiny_tokenizer(), manifest).base is base


def test_another_seeds_model_is_refused(manifest: Any) -> None:
    with pytest.raises(MismatchError, match="other keys and values on the probe text") as error:
        loaded_from(tiny_model("llama", seed=1), tiny_tokenizer(), manifest)
    assert error.value.exit_code == 4


def test_other_rope_settings_are_refused_by_name(manifest: Any) -> None:
    other = tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    with pytest.raises(MismatchError, match=r"RoPE settings rope_theta: 10000\.0 in the bank, 500000\.0 h"):
        loaded_from(other, tiny_tokenizer(), manifest)


def test_other_sizes_are_refused_by_name(manifest: Any) -> None:
    with pytest.raises(MismatchError, match="key-value heads: 2 in the bank, 4 here"):
        loaded_from(tiny_model("llama", num_key_value_heads=4), tiny_tokenizer(), manifest)
    with pytest.raises(MismatchError, match="layers: 4 in the bank, 5 here"):
        loaded_from(tiny_model("llama", num_hidden_layers=5), tiny_tokenizer(), manifest)


def test_other_attention_settings_are_refused_by_name(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "m", "mistral", sliding_window=256)
    loaded = load_model(str(directory), device="cpu", dtype="float32")
    with pytest.raises(MismatchError, match="attention settings sliding_window: 256 in the bank, 64 here"):
        loaded_from(tiny_model("mistral", sliding_window=64), tiny_tokenizer(), manifest_of(loaded))


def trained_tokenizer(vocabulary: int, bos: str = "<s>") -> Any:
    """A tokenizer like the tiny one, of other tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text[::-1] for text in TRAINING_TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>")


def test_another_tokenizer_is_refused_by_its_size_or_its_ids(manifest: Any) -> None:
    with pytest.raises(MismatchError, match="tokens in the tokenizer: 384 in the bank, 320 here"):
        loaded_from(tiny_model("llama"), trained_tokenizer(320), manifest)
    with pytest.raises(MismatchError, match=r"token ids of the probe text \(another tokenizer\)"):
        loaded_from(tiny_model("llama"), trained_tokenizer(384), manifest)
    with pytest.raises(MismatchError, match="no fast tokenizer"):
        loaded_from(tiny_model("llama"), object(), manifest)


def test_another_tokenizer_is_refused_too_where_an_older_manifest_says_less_of_it(manifest: Any) -> None:
    older = changed(manifest, "model", probe_ids=None, tokenizer_tokens=None)
    assert loaded_from(tiny_model("llama"), tiny_tokenizer(), older).reference_bos_ids
    with pytest.raises(MismatchError, match=r"the ids of the reference BOS|probe text"):
        loaded_from(tiny_model("llama"), trained_tokenizer(384), older)


def test_tokens_that_were_only_added_do_not_make_another_tokenizer(manifest: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert loaded_from(tiny_model("llama"), tokenizer, manifest).reference_bos_ids


def test_another_reference_bos_is_refused(manifest: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Reference:"])
    with pytest.raises(MismatchError, match=r"the ids of the reference BOS: .* in the bank, .* here"):
        loaded_from(tiny_model("llama"), tokenizer, manifest)
    with pytest.raises(MismatchError, match="the ids of the reference BOS"):
        loaded_from(tiny_model("llama"), tiny_tokenizer(), changed(manifest, "memory", reference_bos="Ref:"))


def test_what_is_no_transformers_model_is_refused(manifest: Any) -> None:
    with pytest.raises(UsageError, match="Linear is no transformers model"):
        loaded_from(torch.nn.Linear(2, 2), tiny_tokenizer(), manifest)


def test_training_mode_is_refused_only_where_it_has_dropout(manifest: Any) -> None:
    assert loaded_from(tiny_model("llama").train(), tiny_tokenizer(), manifest).base.training
    with pytest.raises(UsageError, match=r"training mode.*eval\(\)"):
        loaded_from(tiny_model("llama", attention_dropout=0.1).train(), tiny_tokenizer(), manifest)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("model", {"probe": None}, "does not say probe"),
        ("model", {"probe": [["x"]]}, "no probe of its model that can be compared"),
        ("model", {"dtype": "int8"}, "no probe of its model that can be compared"),
        ("model", {"rope": None}, "does not say rope"),
        ("memory", {"reference_bos": None}, "does not say reference_bos"),
        ("memory", {"selection": 7}, "has 7 for selection"),
        ("memory", {"memory_layers": [0, 9], "memory_heads": [[0], [0]]}, "do not fit .*no layer 9"),
    ],
)
def test_a_manifest_that_does_not_say_enough_is_refused(
    manifest: Any, section: str, values: Any, words: str
) -> None:
    with pytest.raises(MismatchError, match=words):
        loaded_from(tiny_model("llama"), tiny_tokenizer(), changed(manifest, section, **values))
