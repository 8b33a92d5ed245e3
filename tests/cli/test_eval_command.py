"""``m3build eval`` on a small bank: its JSON, its tables, its gate, what it leaves in the bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_corpus import build, sentence

import m3build
from m3build_cli.main import run
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.errors import UsageError

WAYS = {"none", "quantized", "exact", "random", "text", "dense"}


def end_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(list(arguments))
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A bank, four held-out documents and three questions."""
    directory = tmp_path_factory.mktemp("eval")
    records = [{"_id": f"d{n}", "text": " ".join(sentence(n * 50 + i) for i in range(6))} for n in range(8)]
    (directory / "corpus.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    held = [{"text": " ".join(sentence(5000 + n * 50 + i) for i in range(5))} for n in range(4)]
    (directory / "held-out.jsonl").write_text("\n".join(map(json.dumps, held)), encoding="utf-8")
    queries = [{"_id": str(n), "text": f"number {n * 50 + 3}"} for n in range(3)]
    (directory / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    (directory / "qrels.tsv").write_text("".join(f"{n}\td{n}\t1\n" for n in range(3)), encoding="utf-8")
    build(directory / "corpus.jsonl", directory / "bank", tiny_llama, id_field="_id", dtype="float32")
    return directory


def files_of(place: Path) -> list[str]:
    return [
        *("--text", str(place / "held-out.jsonl"), "--queries", str(place / "queries.jsonl")),
        *("--qrels", str(place / "qrels.tsv"), "--progress", "none"),
    ]


def test_json_has_every_way_with_its_gain_and_the_bank_is_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = str(place / "bank")
    picture = place / "gains.svg"
    options = ["--no-store", "--json", "--plot", str(picture), "-k", "2"]
    assert end_of("eval", bank, *files_of(place), *options) == 0
    results = json.loads(capsys.readouterr().out)
    assert set(results["loss"]) == set(results["gain"]) == set(results["bits_per_character"]) == WAYS
    for way in WAYS:
        gain = results["gain"][way]
        assert gain["mean"] == pytest.approx(results["loss"]["none"] - results["loss"][way])
        assert gain["low"] <= gain["high"]
    assert results["loss"]["none"] == min(results["none"]["plain"], results["none"]["reference_bos"])
    assert results["tokens"] == sum(row["tokens"] for row in results["by_chunk"])
    assert results["documents"] == 4
    assert [row["rank"] for row in results["by_rank"]] == [1, 2]
    assert 0 <= results["retrieval"]["index"]["hit@1"] <= results["retrieval"]["index"]["hit@10"] <= 1
    assert set(results["cost"]["retrieval_ms"]) == {"embed", "search", "load", "decode"}
    assert results["cost"]["bytes_read"] > 0
    assert results["stored"] is None
    assert list_versions(place / "bank") == [1]
    assert b"<svg" in picture.read_bytes()[:1000]


def test_continuations_are_measured_and_shown_where_they_are_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, text = str(place / "bank"), ["--text", str(place / "held-out.jsonl"), "--progress", "none"]
    text += ["--documents", "1"]
    losses = {}
    for option, said in ((["--continuations"], True), (["--no-continuations"], False), ([], False)):
        assert end_of("eval", bank, *text, "--no-store", "--json", *option) == 0
        results = json.loads(capsys.readouterr().out)
        assert results["text"]["continuations"] is said
        losses[said] = results["loss"]["quantized"]
    assert losses[True] != losses[False]
    with pytest.raises(UsageError, match="give True or False"):
        m3build.evaluate(bank, text=place / "held-out.jsonl", continuations="no")
    assert end_of("eval", bank, *text, "--no-store", "--continuations") == 0
    assert "each followed by what its document goes on with" in capsys.readouterr().out
    found = {}
    for option in ([], ["--continuations"]):
        assert end_of("search", bank, "number 203", "-k", "2", "--json", *option) == 0
        found[len(option)] = [hit["text"] for hit in json.loads(capsys.readouterr().out)["hits"]]
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_gate_that_fails_ends_with_7_and_info_shows_what_was_measured(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = str(place / "bank")
    gate = ["--require", "loss_gain>=0.5", "--require", "hit@10>=0", "--documents", "2"]
    assert end_of("eval", bank, *files_of(place), *gate) == 7
    printed = capsys.readouterr()
    assert "loss_gain is " in printed.err
    assert "hit@10" not in printed.err
    assert "FAILED  loss_gain>=0.5" in printed.out
    assert "passed  hit@10>=0" in printed.out
    assert "BM25 of character n-grams" in printed.out or "m3build[eval]" in printed.out
    manifest = read_manifest(bank)
    assert manifest.operation == "eval"
    assert end_of("info", bank, "--json") == 0
    evaluation = json.loads(capsys.readouterr().out)["evaluation"]
    assert set(evaluation["loss"]) == WAYS
    assert evaluation["passed"] is False
    assert end_of("info", bank) == 0
    shown = capsys.readouterr().out
    assert "measured" in shown
    assert "gate not passed" in shown
    assert end_of("verify", bank) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--text"),
        (["--text", "x", "--require", "loss_gian>=1"], "is no figure"),
        (["--text", "x", "--require", "hit@5>=0.9"], "measured only with --queries"),
        (["--queries", "x"], "go together"),
        (["--queries", "x", "--qrels", "y"], "no such file"),
        (["--text", "x", "--plot", "gains.pdf"], "png"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_before_the_bank_is_opened(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of("eval", "no-such-bank", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_control_is_compared_on_the_same_windows(
    place: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("eval", str(place / "bank"), "--text", str(place / "held-out.jsonl"), "--no-store")
    more = ("--window", "64", "--control", str(tiny_llama), "--require", "control_margin>-9")
    assert end_of(*arguments, *more, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"]["window_tokens"] == 64
    # The model is its own control here: its plain contexts are the same.
    assert found["control"]["loss"] == pytest.approx(found["none"]["plain"], abs=1e-9)
    assert end_of(*arguments, *more) == 0
    assert "control, plain context" in capsys.readouterr().out
    assert end_of(*arguments, "--require", "control_margin>0") == 2
    assert end_of(*arguments, "--window", "63") == 2


def test_another_model_than_the_banks_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import save_tiny_model

    other = save_tiny_model(tmp_path / "other", seed=7)
    arguments = ["--text", str(place / "held-out.jsonl"), "--model", str(other), "--no-store"]
    assert end_of("eval", str(place / "bank"), *arguments) == 4
    assert "not the model" in capsys.readouterr().err
