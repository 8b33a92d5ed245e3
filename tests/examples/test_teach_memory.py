"""The recipe that teaches a model to read memories, in miniature: a tiny model with random weights, and
documents each of which is made of ten words of its own."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_config
from safetensors.torch import load_file

from examples.teach_memory.__main__ import main
from examples.teach_memory.batches import READ_BACK, Batches
from examples.teach_memory.corpus import Retrieval, Texts, first_places, read_corpus
from examples.teach_memory.memory_pass import IGNORED, Batch, token_losses
from examples.teach_memory.muon import orthogonal
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
        # Contexts of half a piece: in longer ones a document's ten words are soon seen without any memory.
        **{"memory-layers": "0-1", "steps": 240, "rate": 4e-3, "every": 120, "rows": 16, "context": 33},
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
    assert steps == [120, 240]


def test_a_model_that_reads_continuations_still_does_when_it_is_taught(
    model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(model_directory, given)
    facts = {"reference_tokens": REFERENCE, "continuations": True}
    (given / "memory3.json").write_text(json.dumps(facts), encoding="utf-8")
    options = {"memory-layers": "1", "steps": 2, "documents": 8, "dtype": "bfloat16"}
    _run(given, corpus, tmp_path / "taught", **options)
    assert read_memory3(tmp_path / "taught")["continuations"] is True
    assert load_file(tmp_path / "taught" / "model.safetensors")["lm_head.weight"].dtype == torch.float32


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
        stage = Stage("with memory", Schedule(6, 1e-3), batches.with_memory, every=2, muon=True)

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
    found = Retrieval(split, model).best(split.train[0], owner=0)
    # The same document with another ending: pieces before it retrieve the same.
    changed = split.train[0][:127] + [9] * 64
    again = Retrieval(split, model).best(changed, owner=0)
    assert [row[:1] for row in found[:2]] == [row[:1] for row in again[:2]]
    assert all(split.owners[number] != 0 for row in found for number in row)
    read = batches._read("retrieved", 0, 0, 3, Random(0))
    fitting = [row[0] for row in (found[1], found[0]) if row]
    assert read[2] == [(split.owners[number], split.references[number]) for number in fitting]
    assert read[0] == []


def test_a_model_that_reads_continuations_reads_them_in_some_rows_as_it_will_in_use(
    model_directory: Path, corpus: Path
) -> None:
    class Sure(Random):
        def random(self) -> float:
            return 0.0

    _, without = _prepared(model_directory, corpus)
    model, batches = _prepared(model_directory, corpus, continuations=True)
    split = read_corpus(model, [str(corpus)])
    found = Retrieval(split, model).best(split.train[0], owner=0)
    expected: list[int] = []
    for number in found[1]:
        goes_on = number + 1 < len(split.owners) and split.owners[number + 1] == split.owners[number]
        expected += [n for n in (number, number + goes_on) if n not in expected]
    assert any(after == before + 1 for before, after in pairwise(expected[:READ_BACK]))
    read = batches._read("retrieved", 0, 0, 3, Sure(0))
    assert read[2] == [(split.owners[n], split.references[n]) for n in expected[:READ_BACK]]
    assert read[0] == []
    assert without._read("retrieved", 0, 0, 3, Sure(0))[2] != read[2]


def test_passes_in_bfloat16_train_weights_in_float32(
    model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    model, batches = _prepared(model_directory, corpus)
    types = set()

    def listen(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
        types.add(output.dtype)

    layer = model.base.layers[0]
    layer.mlp.up_proj.register_forward_hook(listen)
    # Steps of a millionth, where bfloat16 has nothing between 1 and 1.0078.
    train(
        model,
        Stage("with memory", Schedule(2, 1e-6), batches.with_memory, mixed=True),
        tmp_path,
        _unheard,
        dict,
    )
    assert types == {torch.bfloat16}
    moved = (layer.input_layernorm.weight.detach() - 1).abs()
    assert layer.input_layernorm.weight.dtype == torch.float32
    assert 0 < float(moved.max()) < 1e-4


def test_half_of_the_rows_read_references_that_tell_nothing_of_their_document(
    model_directory: Path, corpus: Path
) -> None:
    _, batches = _prepared(model_directory, corpus, rows=16)
    # The first chunk of a row has no chunk before it; of five references it reads, some are strange.
    full = total = 0
    for step in range(12):
        reads = batches.with_memory(step).reads
        if reads is not None:
            assert reads.shape[2] <= READ_BACK
            full += int((reads[:, 0] >= 0).all(1).sum()) if reads.shape[2] == READ_BACK else 0
            total += len(reads)
    assert 0.2 * total < full < 0.8 * total
    document = batches._split.train[0]
    owners = {(1, 2, 3): 0, tuple(document[5:30]): 3, (2, 3, 4): 1, (3, 4, 5): 2}
    # Neither its own references nor another's that hold its text.
    assert sorted(batches._strange(0, owners, Random(0))) == [(2, 3, 4), (3, 4, 5)]


def test_the_control_is_trained_on_the_same_contexts_of_all_lengths_and_reads_nothing(
    model_directory: Path, corpus: Path
) -> None:
    model, _ = _prepared(model_directory, corpus)
    split = read_corpus(model, [str(corpus)])
    # Contexts of 17 tokens, and of 68 in documents of 128.
    batches, control = (
        Batches(model, split, Retrieval(split, model), 4, 17, 0, memory=memory) for memory in (True, False)
    )
    lengths = set()
    for step in range(6):
        batch, same = batches.with_memory(step), control.with_memory(step)
        assert torch.equal(batch.ids, same.ids)
        assert torch.equal(batch.labels, same.labels)
        assert same.plain
        assert not same.references
        lengths.add(batch.ids.shape)
    assert (4, 17) in lengths
    assert any(tokens > 17 for _, tokens in lengths)


def test_the_warm_up_goes_through_all_text_once_before_any_comes_again(
    model_directory: Path, corpus: Path
) -> None:
    model, batches = _prepared(model_directory, corpus, warm_up_steps=10_000)
    ids = read_corpus(model, [str(corpus)]).train.ids
    # The first phase has contexts of half the length, 32 tokens with BOS, and twice the rows.
    size, rows = 31, 8
    steps = len(ids) // size // rows
    seen: list[tuple[int, ...]] = []
    for step in range(steps):
        batch = batches.warm_up(step)
        assert batch.ids.shape == (rows, size + 1)
        assert (batch.ids[:, 0] == 0).all()
        seen.extend(map(tuple, batch.ids[:, 1:].tolist()))
    assert len(set(seen)) == len(seen) == steps * rows
    # Where a document begins, BOS stands in the row.
    assert sum(row.count(0) for row in seen) > 400


def test_later_every_second_row_is_a_repeated_passage_and_some_contexts_are_long(
    model_directory: Path, corpus: Path
) -> None:
    _, batches = _prepared(model_directory, corpus, warm_up_steps=100)
    shapes = [tuple(batches.warm_up(step).ids.shape) for step in (0, 50, 90, 91)]
    assert shapes == [(8, 32), (4, 65), (4, 65), (1, 260)]
    for row, ids in enumerate(batches.warm_up(50).ids):
        first, second = ids[1:33], ids[33:]
        assert (sorted(first.tolist()) == sorted(second.tolist())) == (row % 2 == 1)


def test_texts_in_one_array_are_the_texts() -> None:
    texts = Texts(np.arange(9, dtype=np.int32), np.array([2, 2, 5, 9]))
    assert list(texts) == [[0, 1], [], [2, 3, 4], [5, 6, 7, 8]]
    assert texts[-1] == [5, 6, 7, 8]
    assert texts[1:3] == [[], [2, 3, 4]]
    assert texts.lengths.tolist() == [2, 0, 3, 4]
    with pytest.raises(IndexError):
        texts[4]
    # Where a text begins within the run, and only there, is what stands between.
    assert texts.run(2, 4, [99]) == [2, 3, 4, 99]
    assert texts.run(3, 4, [99, 98]) == [3, 4, 99, 98]
    assert texts.run(1, 9, []) == list(range(1, 9))


def test_tokens_are_kept_until_the_corpus_changes(model_directory: Path, tmp_path: Path) -> None:
    model = load_causal_model(str(model_directory), dtype="float32", device="cpu")
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(f'{{"id": "{n}", "text": "w{n} w1 w2"}}\n' for n in range(20)), encoding="utf-8")
    first = read_corpus(model, [str(path)], tmp_path)
    [kept] = tmp_path.glob("tokens-*")
    before = kept.stat().st_mtime_ns
    again = read_corpus(model, [str(path)], tmp_path)
    assert kept.stat().st_mtime_ns == before
    assert list(again.train) == list(first.train) == list(read_corpus(model, [str(path)]).train)
    assert again.owners == first.owners
    path.write_text(path.read_text(encoding="utf-8").replace("w2", "w7"), encoding="utf-8")
    assert list(read_corpus(model, [str(path)], tmp_path).train) != list(first.train)


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 8, 5), (1, 6, 6)])
def test_muon_steps_in_the_direction_of_the_nearest_orthogonal_matrix(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices)
    # The quintic iteration brings singular values near 1, not to 1.
    assert ((torch.linalg.svdvals(found) - 1).abs() < 0.45).all()
    cosine = (found * (u @ vt)).sum((1, 2)) / found.norm(dim=(1, 2)) / (u @ vt).norm(dim=(1, 2))
    assert (cosine > 0.95).all()


def _unheard(entry: dict[str, Any]) -> None:
    """A log that nobody reads."""


def _prepared(
    directory: Path, corpus: Path, warm_up_steps: int = 0, rows: int = 4, continuations: bool = False
) -> tuple[CausalModel, Batches]:
    model = load_causal_model(str(directory), dtype="float32", device="cpu")
    shape = ShapeRequest(
        memory_layers=[1], sparse_tokens=8, reference_tokens=REFERENCE, continuations=continuations
    )
    model = model.shaped(shape)
    split = read_corpus(model, [str(corpus)])
    return model, Batches(model, split, Retrieval(split, model), rows, 65, 0, warm_up_steps)


@pytest.mark.parametrize("references", [1, 30, 31, 500])
def test_the_best_references_are_those_of_a_stable_sort(references: int) -> None:
    chance = np.random.default_rng(references)
    for scores in chance.integers(0, 9, (20, references)).astype(np.float32):
        expected = np.argsort(-scores, kind="stable")[:30]
        assert first_places(scores, 30).tolist() == expected.tolist()
