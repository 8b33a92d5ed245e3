"""Calibration: scores against transformers' own attention weights, and recommendations for a model whose
copying head is known and for models that have none."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from models import ARCHITECTURES, tiny_model
from planted import FIRST_WORD, VOCABULARY, planted_model

from m3build.calibration import (
    Calibration,
    Repeats,
    calibrate,
    cut_passages,
    random_passages,
    repeat_passages,
)
from m3build.calibration.head_scores import head_scores
from m3build.calibration.reading_loss import Passages, reading_losses
from m3build.calibration.run import calibrate_model
from m3build.model.causal import load_causal_model
from m3build.model.memory3_file import read_memory3, write_memory3
from m3build_formats.errors import InputError, UsageError


def _distinct_words(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Passages in which no word occurs twice, so that copying is never in doubt."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(rows, VOCABULARY - FIRST_WORD, generator=generator).argsort(1)
    return orders[:, :tokens] + FIRST_WORD


def _repeats(passages: torch.Tensor, piece: int) -> Repeats:
    return repeat_passages(passages, piece, torch.Generator().manual_seed(1))


def test_a_repetition_is_the_passage_in_pieces() -> None:
    passages = torch.arange(3 * 22).view(3, 22)
    repeats = _repeats(passages, 8)
    assert repeats.rows((99,)).shape == (3, 45)
    for row in range(3):
        again = repeats.repetition[row].tolist()
        assert sorted(again) == passages[row].tolist()
        # What counts as copied follows on the token before as it did in the passage.
        follows = [False] + [after == before + 1 for before, after in pairwise(again)]
        assert repeats.copied[row].tolist() == follows
    assert len({tuple(row) for row in (repeats.source - repeats.source.min()).tolist()}) > 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_are_those_of_the_attention_that_the_model_computes(arch: str) -> None:
    model = (
        tiny_model(arch, attn_implementation="eager", sliding_window=24)
        if "gemma" in arch
        else tiny_model(arch)
    )
    model.set_attn_implementation("eager")
    passages = random_passages(384, (0, 1), 20, 5, torch.Generator().manual_seed(0))
    repeats = _repeats(passages, 6)
    ids = repeats.rows((0,))
    with torch.no_grad():
        attention = model(ids, output_attentions=True, use_cache=False).attentions
        scores = head_scores(model.base_model, repeats, (0,), batch=2)
    for layer, weights in enumerate(attention):
        copying, previous = [], []
        for row in range(5):
            source = repeats.source[row].tolist()
            for place, at in enumerate(source):
                token = 1 + 20 + place
                previous.append(weights[row, :, token, token - 1])
                if place + 1 < 20 and source[place + 1] == at + 1:
                    copying.append(weights[row, :, token, 1 + at + 1])
        torch.testing.assert_close(scores.copying[layer], torch.stack(copying).mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            scores.previous[layer], torch.stack(previous).mean(0), atol=1e-5, rtol=1e-4
        )


def test_planted_heads_are_found_and_the_copying_layer_is_recommended(planted: Path) -> None:
    model = load_causal_model(str(planted), dtype="float32", device="cpu")
    found = calibrate(model, _repeats(_distinct_words(24, 16), 4))
    assert found.scores.previous[0, 0] > 0.99
    assert found.scores.copying[1, 0] > 0.99
    assert found.scores.copying[0, 0] < 0.05
    assert found.copies
    assert found.repeated_loss < 0.1 < 2.0 < found.first_loss
    assert found.memory3() == {"memory_layers": [1]}
    assert found.recommended is not None
    assert found.recommended.repeated.loss < 0.1
    assert found.recommended.repeated.mean > 2.0
    first_half = next(choice for choice in found.choices if list(choice.heads) == [0])
    assert first_half.repeated.mean < 0.1


def test_reading_the_passage_from_memory_is_having_it_in_the_context(planted: Path) -> None:
    model = load_causal_model(str(planted), dtype="float32", device="cpu")
    repeats = _repeats(_distinct_words(6, 16), 4)
    task = Passages.repeated(repeats)
    with torch.no_grad():
        own, none = reading_losses(model, task, [{1: [0]}, {}], batch=4)
        (other,) = reading_losses(model, task, [{1: [0]}], shift=1, batch=4)
    assert own.shape == (6,)
    assert float(own.max()) < 0.1
    assert float(none.min()) > 2.0
    assert float(other.mean()) > 2.0


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox"])
def test_nothing_is_recommended_for_random_weights(tmp_path: Path, arch: str) -> None:
    from models import save_tiny_model

    model = load_causal_model(str(save_tiny_model(tmp_path, arch)), dtype="float32", device="cpu")
    passages = random_passages(384, (0, 1), 48, 16, torch.Generator().manual_seed(0))
    found = calibrate(model, _repeats(passages[:, :24], 8), passages)
    assert found.recommended is None
    assert found.memory3() == {}
    assert not found.copies
    assert found.choices
    json.dumps(found.to_json(), allow_nan=False)


def test_the_recommendation_is_written_beside_what_the_file_says(planted: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(planted, tmp_path / "model"))
    write_memory3(directory, {"memory_layers": [0, 1], "memory_heads": {"0": [0]}, "sparse_tokens": 5})
    corpus = tmp_path / "corpus.jsonl"
    texts = [" ".join(f"w{n - FIRST_WORD}" for n in row) for row in _distinct_words(24, 20).tolist()]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    found, path = calibrate_model(
        str(directory),
        [str(corpus)],
        passages=24,
        passage_tokens=10,
        dtype="float32",
        device="cpu",
        write=True,
    )
    assert isinstance(found, Calibration)
    assert path == directory / "memory3.json"
    assert read_memory3(directory) == {"memory_layers": [1], "sparse_tokens": 5}
    assert [item.name for item in directory.iterdir() if item.name.startswith(".")] == []
    assert load_causal_model(str(directory)).shape.memory_layers == (1,)
    with pytest.raises(InputError, match="two at least"):
        calibrate_model(str(directory), [str(corpus)], passage_tokens=40)


def test_the_command_prints_a_table_and_json(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from m3build_cli.main import run

    arguments = ["calibrate", "--model", str(planted), "--passages", "8", "--passage-tokens", "16"]
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 0
    assert "recommended" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run([*arguments, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["recommended"] == {"memory_layers": [1]}
    assert answer["written"] is False
    assert len(answer["layers"]) == 2
    assert not (planted / "memory3.json").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown key 'layers'"):
        write_memory3(tmp_path, {"layers": [1]})
    with pytest.raises(UsageError, match="must be a list of integers"):
        write_memory3(tmp_path, {"memory_layers": "all"})
    assert not any(tmp_path.iterdir())


def test_passages_are_cut_from_the_beginnings_of_documents_first() -> None:
    documents = [[1, 2, 3, 4, 5], [6, 7], [8]]
    assert cut_passages(documents, 2, 10).tolist() == [[1, 2], [6, 7], [3, 4]]
    assert cut_passages(documents, 2, 2).tolist() == [[1, 2], [6, 7]]
    assert cut_passages([[1]], 2, 2).shape == (0, 2)


def test_random_passages_hold_no_special_token() -> None:
    passages = random_passages(6, (0, 5), 50, 4, torch.Generator().manual_seed(0))
    assert passages.shape == (4, 50)
    assert set(passages.flatten().tolist()) == {1, 2, 3, 4}


def test_the_planted_model_predicts_what_it_copies() -> None:
    repeats = _repeats(_distinct_words(4, 12), 4)
    ids = repeats.rows((0,))
    with torch.no_grad():
        predicted = planted_model()(ids).logits.argmax(-1)[:, :-1]
    right = (predicted == ids[:, 1:])[:, -12:]
    assert bool(right[repeats.copied].all())
