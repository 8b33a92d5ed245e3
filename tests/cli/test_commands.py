"""Every command on a real bank: what it prints, its JSON, its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from m3build_cli.main import run
from m3build_formats.bank import read_manifest
from m3build_formats.info import describe

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"


def end_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(list(arguments))
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The sample corpus, compiled by the command."""
    place = tmp_path_factory.mktemp("bank") / "bank"
    arguments = ["compile", str(CORPUS), "-o", str(place), "--model", str(tiny_llama), "--progress", "none"]
    assert end_of(*arguments) == 0
    return place


def test_compile_prints_a_summary_and_json_on_standard_output_only(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "bank")
    assert end_of("compile", str(CORPUS), "-o", place, "--model", str(tiny_llama), "--progress", "lines") == 0
    printed = capsys.readouterr()
    assert "version 1, 15 documents" in printed.out
    assert "encode:" in printed.err
    assert end_of("compile", str(CORPUS), "-o", place, "--json", "--progress", "none") == 0
    again = capsys.readouterr()
    answer = json.loads(again.out)
    assert (answer["changed"], answer["encoded"], answer["info"]["documents"]) == (False, 0, 15)
    assert end_of("compile", str(CORPUS), "-o", place, "--progress", "none") == 0
    assert "up to date" in capsys.readouterr().out


def test_info_prints_the_facts_that_the_design_promises(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of("info", str(bank), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    for key in (
        "format_version",
        "version",
        "documents",
        "chunks",
        "tokens",
        "duplicates",
        "rejects",
        "shards",
    ):
        assert isinstance(facts[key], int), key
    assert set(facts["bytes"]) >= {"text", "memories", "codec", "embeddings", "index", "total"}
    on_disk = sum(path.stat().st_size for path in (bank / "data").iterdir())
    assert facts["bytes"]["total"] == on_disk
    assert set(facts["model"]) >= {
        "name", "fingerprint", "memory_layers", "kv_heads", "head_dim", "sparse_tokens", "reference_tokens",
    }  # fmt: skip
    assert set(facts["codec"]) >= {"spec", "bytes_per_vector", "compression", "key_error", "value_error"}
    assert set(facts["embedder"]) >= {"name", "dim"}
    assert set(facts["index"]) >= {"type", "metric", "vectors"}
    assert facts["index"]["vectors"] == facts["chunks"]
    assert end_of("info", str(bank)) == 0
    text = capsys.readouterr().out
    assert f"{facts['chunks']:,} in" in text
    assert facts["sha256"] in text


def test_search_finds_the_chunk_that_says_it_and_show_shows_it(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        end_of(
            "search",
            str(bank),
            "a flipped bit is found before anything parses the block",
            "-k",
            "2",
            "--json",
        )
        == 0
    )
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert len(hits) == 2
    assert "flipped bit" in hits[0]["text"]
    place = hits[0]["sources"][0]
    source = (CORPUS / place["source"]).read_text(encoding="utf-8")
    assert source[place["start"] : place["end"]] == hits[0]["text"]

    assert end_of("show", str(bank), hits[0]["id"][:12], "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == hits[0]["text"]
    assert shown["token_spans"][-1][1] == len(shown["text"])
    for head in shown["kept"]:
        assert head["tokens"] == sorted(head["tokens"])
        assert len(head["tokens"]) == min(8, shown["tokens"])

    assert end_of("show", str(bank), hits[0]["id"][:12], "--layer", "1", "--head", "0") == 0
    text = capsys.readouterr().out
    assert text.count("[") == 8
    assert end_of("show", str(bank), hits[0]["id"][:12], "--layer", "3") == 2
    assert "layer 3" in capsys.readouterr().err


def test_a_chinese_question_finds_the_chinese_page(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("search", str(bank), "显式记忆由什么生成？", "-k", "1", "--json") == 0
    hit = json.loads(capsys.readouterr().out)["hits"][0]
    assert hit["sources"][0]["source"] == "zh/memories.md"


def test_an_unknown_or_ambiguous_chunk_is_exit_2(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("show", str(bank), "ffffffffffff") == 2
    assert end_of("show", str(bank), "not hex") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_verify_says_sound_at_every_level(
    bank: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level in ([], ["--quick"], ["--deep", "--model", str(tiny_llama)]):
        assert end_of("verify", str(bank), *level) == 0
        assert "sound" in capsys.readouterr().out
    assert end_of("verify", str(bank), "--deep", "--model", str(tiny_llama), "--sample", "10", "--json") == 0
    deep = json.loads(capsys.readouterr().out)["deep"]
    assert deep == {"compared": 10, "exact": 10, "bytes_expected": True, "worst": 0.0, "problems": []}


def test_verify_names_the_bad_file_and_ends_with_5(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "bank"
    shutil.copytree(bank, place)
    entry = read_manifest(place).shards[0].memories
    assert entry is not None
    path = place / "data" / entry.name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)
    (place / "data" / "stray").write_text("?", encoding="utf-8")
    capsys.readouterr()
    assert end_of("verify", str(place)) == 5
    printed = capsys.readouterr()
    assert entry.name in printed.out
    assert "stray" in printed.out
    assert "compile again" in printed.err
    assert "rollback" not in printed.err
    assert end_of("verify", str(place), "--quick") == 0
    path.unlink()
    assert end_of("verify", str(place), "--quick") == 5
    capsys.readouterr()
    assert end_of("verify", str(place), "--quick", "--json") == 5
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"]
    assert any(entry.name in problem["file"] for problem in answer["problems"])


def test_verify_says_what_can_be_done_about_a_damaged_manifest(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "bank"
    shutil.copytree(bank, place)
    manifest = place / "versions" / "00000001.json"
    data = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(data[:-3])
    capsys.readouterr()
    assert end_of("verify", str(place)) == 5
    printed = capsys.readouterr()
    assert printed.out.startswith("versions/00000001.json: a manifest is whole and known: ")
    assert "m3build rollback" in printed.err
    assert "compile again" not in printed.err


def test_verify_deep_finds_a_memory_that_another_model_wrote(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import save_tiny_model

    other = save_tiny_model(tmp_path / "other", seed=3)
    assert end_of("verify", str(bank), "--deep", "--model", str(other)) == 4
    assert "not the model" in capsys.readouterr().err


def test_a_plan_prints_the_papers_figures_for_the_papers_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=60416,
        hidden_size=3200,
        intermediate_size=3200,
        num_hidden_layers=44,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=80,
    ).save_pretrained(tmp_path / "memory3-2b")
    model = str(tmp_path / "memory3-2b")
    arguments = [
        "compile",
        "--plan",
        "--references",
        "1.12e8",
        "--model",
        model,
        "--codec",
        "memory3",
        "--progress",
        "none",
    ]
    assert end_of(*arguments) == 0
    text = capsys.readouterr().out
    for figure in ("7.17 PiB", "45.9 TiB", "4.02 TiB", "0.308 TFLOP"):
        assert figure in text
    assert end_of(*arguments, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["codec"] == "OPQ20_80,Residual2x14,PQ8x10"
    assert (plan["dense_bytes_each"], plan["sparse_bytes_each"], plan["code_bytes_each"]) == (
        72_089_600,
        450_560,
        39_424,
    )


def test_a_plan_of_a_real_corpus_writes_nothing_and_comes_close(
    bank: Path, tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "bank"
    assert (
        end_of(
            "compile",
            str(CORPUS),
            "-o",
            str(place),
            "--model",
            str(tiny_llama),
            "--plan",
            "--json",
            "--progress",
            "none",
        )
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert not place.exists()
    assert plan["references"] == read_manifest(bank).counts["chunks"]
    bank_bytes = describe(read_manifest(bank))["bytes"]
    assert plan["text_bytes"] == pytest.approx(bank_bytes["text"], rel=0.35)
    assert plan["index_bytes"] == pytest.approx(bank_bytes["index"], rel=0.05)
    assert set(plan["seconds"]) == {"chunk", "encode", "embed"}
    assert all(seconds > 0 for seconds in plan["seconds"].values())


def test_compile_needs_sources_and_a_place(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("compile", str(CORPUS), "--model", str(tiny_llama)) == 2
    assert "-o" in capsys.readouterr().err
    assert end_of("compile", "-o", "nowhere", "--model", str(tiny_llama)) == 2
    assert end_of("compile", "no-such-path", "-o", "nowhere", "--model", str(tiny_llama)) == 2
    assert not Path("nowhere").exists()
