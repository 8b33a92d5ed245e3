"""The recipe that teaches a model to read memories, in miniature: a tiny model with random weights, and
documents each of which is made of ten words of its own."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from models import tiny_config
from safetensors.torch import load_file

from examples.teach_memory.__main__ import main
from examples.teach_memory.batches import Batches
from examples.teach_memory.corpus import Retrieval, read_corpus
from examples.teach_memory.memory_pass import IGNORED, Batch, token_losses
from examples.teach_memory.training import Schedule, Stage, train
from m3build.model.causal import CausalModel, load_causal_model
from m3build.model.memory3_file import read_memory3
from m3build.model.shape import ShapeRequest
from m3build_formats.errors import GateError

WORDS = [f"w{number}" for number in range(80)]
REFERENCE = 64


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 documents of 128 words, ten words each in random order: too many to learn by heart."""
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    random = Random(0)
    documents = [" ".join(random.choices(random.sample(WORDS, 10), k=128)) for _ in range(600)]
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(documents)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, random weights, a token for each word; references of 64 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("model")
    names = ["<s>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = tiny_config(
        "llama",
        vocab_size=len(names),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        head_dim=16,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    (directory / "memory3.json").write_text(json.dumps({"reference_tokens": REFERENCE}), encoding="utf-8")
    return directory


def _run(model: Path, corpus: Path, out: Path, **options: Any) -> None:
    given = {"rows": 8, "context": 65, "sparse-tokens": 32, "device": "cpu", **options}
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not True]
    arguments += [f"--{name}" for name, value in given.items() if value is True]
    main.main(
        ["--model", str(model), "--corpus", str(corpus), "--out", str(out), *arguments], standalone_mode=False
    )


def test_the_recipe_teaches_a_model_to_read(model_directory: Path, corpus: Path, tmp_path: Path) -> None:
    _run(
        model_directory,
        corpus,
        tmp_path,
        **{"memory-layers": "0-1", "steps": 200, "rate": 4e-3, "every": 100},
    )
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    for name in ("gain: earlier", "gain: earlier over other", "gain: passage"):
        assert figures[name]["low"] > 0.05, (name, figures[name])
    assert abs(figures["gain: retrieved over random"]["mean"]) < figures["gain: earlier"]["mean"]
    # What is written is a model that says how it reads, with its curves and its card.
    assert read_memory3(tmp_path)["memory_layers"] == [0, 1]
    assert load_causal_model(str(tmp_path)).shape.sparse_tokens == 32
    assert (tmp_path / "losses.png").stat().st_size > 1000
    assert "gain: earlier" in (tmp_path / "README.md").read_text(encoding="utf-8")
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [100, 200]


def test_a_model_that_reads_nothing_is_refused_for_stage_two(
    model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(GateError, match="ignore memories"):
        _run(model_directory, corpus, tmp_path, **{"warm-up-steps": 1, "steps": 1})
    assert not (tmp_path / "model.safetensors").exists()


def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(
    model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def weights(place: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        model, batches = _prepared(model_directory, corpus)
        stage = Stage("with memory", Schedule(6, 1e-3), batches.with_memory, every=2)

        def log(entry: dict[str, Any]) -> None:
            if entry["step"] == stop_at:
                raise Stopped

        if stop_at is not None:
            with pytest.raises(Stopped):
                train(model, stage, place, log, dict)
            model, _ = _prepared(model_directory, corpus)
        train(model, stage, place, lambda _: None, dict)
        return load_file(place / "weights.safetensors")

    whole, interrupted = weights(tmp_path / "whole", None), weights(tmp_path / "interrupted", 4)
    assert all(torch.equal(whole[name], interrupted[name]) for name in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interrupted", "whole"]


def test_gradients_reach_the_model_through_what_it_wrote(model_directory: Path, corpus: Path) -> None:
    model, _ = _prepared(model_directory, corpus)
    ids = torch.tensor([[0, 5, 6, 7, 8]])
    labels = torch.full_like(ids, IGNORED)
    labels[:, 3:] = ids[:, 3:]
    batch = Batch(ids, labels, [[20, 20, 21, 22]], torch.tensor([[[0]]]))
    losses = token_losses(model, batch)
    assert losses[0, :3].tolist() == [0.0, 0.0, 0.0]
    losses.sum().backward()

    def gradient() -> float:
        """Of the embedding of a token that occurs in the reference alone; an untied head has none for it."""
        found = model.model.get_input_embeddings().weight.grad
        return float(found[20].abs().max())

    read = gradient()
    model.model.zero_grad()
    token_losses(model, Batch(ids, labels)).sum().backward()
    unread = gradient()
    assert read > 0.0 == unread


def test_nothing_that_a_row_reads_was_retrieved_with_text_after_it(
    model_directory: Path, corpus: Path
) -> None:
    model, batches = _prepared(model_directory, corpus)
    split = read_corpus(model, [str(corpus)])
    found = Retrieval(split, model).best(split.train[0], 0)
    # The same document with another ending: pieces before it retrieve the same.
    changed = split.train[0][:127] + [9] * 64
    again = Retrieval(split, model).best(changed, 0)
    assert [row[:1] for row in found[:2]] == [row[:1] for row in again[:2]]
    assert all(split.owners[number] != 0 for row in found for number in row)
    read = batches._read("retrieved", 0, 0, 2, Random(0))
    assert read == [split.references[row[0]] for row in (found[1], found[0]) if row]
    assert batches._read("retrieved", 0, 0, 0, Random(0)) == []


def _prepared(directory: Path, corpus: Path) -> tuple[CausalModel, Batches]:
    model = load_causal_model(str(directory), dtype="float32", device="cpu")
    model = model.shaped(ShapeRequest(memory_layers=[1], sparse_tokens=8, reference_tokens=REFERENCE))
    split = read_corpus(model, [str(corpus)])
    return model, Batches(model, split, Retrieval(split, model), rows=4, context=65, seed=0)
