"""m3-mini as it ships: where it is found, what it is, and that it reads memories."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import m3build
from m3build.config import CompileOptions, resolve
from m3build.model.causal import CausalModel, load_causal_model
from m3build.model.source import DEFAULT_MODEL, SHIPPED, find_model

DIRECTORY = SHIPPED / DEFAULT_MODEL
CORPUS = Path(__file__).parents[3] / "examples" / "corpus"


@pytest.fixture(scope="module")
def m3_mini() -> CausalModel:
    return load_causal_model(DEFAULT_MODEL, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of the sample corpus, compiled without naming a model."""
    place = tmp_path_factory.mktemp("shipped") / "bank"
    m3build.compile(CORPUS, place, device="cpu", dtype="float32")
    return place


def test_the_name_is_that_of_the_model_in_the_package_whatever_stands_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "m3-mini"
    own.mkdir()
    (own / "config.json").write_text("{}")
    (own / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find_model("m3-mini").directory == DIRECTORY
    assert find_model("./m3-mini").directory.samefile(own)
    assert resolve(CompileOptions(), None, rebuild=False).model == "m3-mini"


def test_it_is_small_in_bfloat16_and_says_where_its_memories_sit(m3_mini: CausalModel) -> None:
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) < 30 << 20
    with safe_open(DIRECTORY / "model.safetensors", "pt") as weights:  # type: ignore[no-untyped-call]
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    config = m3_mini.model.config
    assert m3_mini.model.num_parameters() <= 13_000_000
    assert config.tie_word_embeddings
    assert config.max_position_embeddings >= 1024
    said = json.loads((DIRECTORY / "memory3.json").read_text(encoding="utf-8"))
    assert list(m3_mini.shape.memory_layers) == said["memory_layers"]
    assert m3_mini.shape.sparse_tokens == said["sparse_tokens"]


def test_its_tokenizer_gives_back_any_text(m3_mini: CausalModel) -> None:
    for text in ("git  rebase --onto\n\tmain", "数据库的事务。", "データベース", "🦀 ﬁ\u0000", "a" * 300):
        ids = m3_mini.tokenizer.encode(text, add_special_tokens=False)
        assert m3_mini.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_its_card_names_what_it_was_trained_on_and_what_was_held_out() -> None:
    card = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    for words in ("| postgresql |", "| git |", "PSF-2.0", "held out", "gain over random references"):
        assert words in card


def test_a_bank_of_it_lowers_its_loss_on_text_that_the_bank_holds(bank: Path) -> None:
    found = m3build.evaluate(
        bank, text=[CORPUS], query="own", overlap=1.0, window=128, tokens=800, device="cpu", store=False
    ).results
    # A query that retrieves itself: no honest use, but it shows reading, quantization included.
    assert found["gain"]["quantized"]["low"] > 0.1
    assert found["gain_over_random"]["low"] > 0.1
    assert found["gain_kept"] > 0.8


def test_attach_without_a_model_loads_the_banks_own(bank: Path) -> None:
    with m3build.attach(None, bank) as reader, torch.no_grad():
        ids = reader.tokenizer("<s>A head keeps", add_special_tokens=False, return_tensors="pt").input_ids
        output = reader.model.generate(ids, max_new_tokens=2, do_sample=False)
        assert output.shape == (1, ids.shape[1] + 2)
        assert reader.last_read[0]
    assert os.path.samefile(find_model(str(reader.loaded.name)).directory, DIRECTORY)
