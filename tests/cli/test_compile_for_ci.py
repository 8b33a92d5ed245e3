"""What a scheduler gets from ``compile``: JSON lines, a result file whatever happens, and a check that a bank
can be built again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cheap_builds import cheap_builds
from small_corpus import sentence, write_smaller_corpus

from m3build.pipeline import build as build_module
from m3build_cli.main import run
from m3build_formats.bank import list_versions


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    with cheap_builds():
        yield


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path) -> Path:
    """A corpus and its bank."""
    write_smaller_corpus(tmp_path / "corpus")
    assert compiled(tmp_path, tiny_llama) == 0
    return tmp_path


def compiled(place: Path, model: Path, *options: str) -> int:
    """The exit code of a build in ``place``."""
    given = ["compile", str(place / "corpus"), "--progress", "none", "--max-rejects", "50%", *options]
    if "--reproduce" not in options:
        given += ["-o", str(place / "bank")]
    if not (place / "bank").exists():
        given += ["--model", str(model), "--codec", "SQ8", "--shard-chunks", "4"]
    with pytest.raises(SystemExit) as ended:
        run(given)
    return int(ended.value.code or 0)


def test_a_bank_that_is_built_again_is_byte_identical(
    place: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "corpus" / "new.txt").write_text(sentence(7000), encoding="utf-8")
    compiled(place, tiny_llama)
    capsys.readouterr()
    assert compiled(place, tiny_llama, "--reproduce", str(place / "bank"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identical"] is True
    assert found["version"] == 2
    assert found["encoded"] > 20
    assert list_versions(place / "bank") == [1, 2]
    assert {path.name for path in place.iterdir()} >= {"bank", "corpus"}
    assert not list(place.glob(".m3build-reproduce-*"))


def test_what_differs_is_said_with_an_exit_code_of_its_own(
    place: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "corpus" / "05.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("number 201.", "number x."), encoding="utf-8")
    assert compiled(place, tiny_llama, "--reproduce", str(place / "bank"), "--result", str(place / "r")) == 4
    said = capsys.readouterr().out
    assert "came out otherwise" in said
    assert "chunks, " in said
    ended = json.loads((place / "r").read_text(encoding="utf-8"))
    assert (ended["outcome"], ended["exit_code"]) == ("failed", 4)
    assert ended["result"]["identical"] is False
    assert compiled(place, tiny_llama, "--reproduce", str(place / "bank"), "--retrain") == 2


def test_progress_as_json_has_every_stage_with_counts_and_rejects(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_smaller_corpus(tmp_path / "corpus")
    assert compiled(tmp_path, tiny_llama, "--progress", "json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    stages = [line for line in lines if line["event"] == "stage"]
    assert [line["stage"] for line in stages if line["state"] == "begun"][:3] == ["look", "chunk", "sample"]
    ended = {line["stage"]: line for line in stages if line["state"] == "done"}
    assert ended["encode"]["done"] == ended["encode"]["total"] > 0
    assert ended["encode"]["unit"] == "references"
    assert ended["encode"]["rejects"] == 1
    assert all({"rate", "eta", "seconds"} <= set(line) for line in stages)


def test_a_list_of_rejects_that_is_full_is_said_by_compile_and_info(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_smaller_corpus(tmp_path / "corpus")
    good = json.dumps({"text": sentence(7000)})
    (tmp_path / "corpus" / "more.jsonl").write_text("nonsense\n" * 5 + f"{good}\n" * 5, encoding="utf-8")
    monkeypatch.setattr("m3build_formats.rejects_file.MAX_REJECTS_TEXT_BYTES", 500)
    assert compiled(tmp_path, tiny_llama) == 0
    said = capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(["info", str(tmp_path / "bank"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["unlisted"] < facts["rejects"] + facts["unsupported_files"]
    assert f"the last {facts['unlisted']:,} entries: its list is full" in said
    with pytest.raises(SystemExit):
        run(["info", str(tmp_path / "bank")])
    assert f"{facts['unlisted']:,} are not in its list" in capsys.readouterr().out


def test_info_lists_what_was_rejected_or_passed_over(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_smaller_corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / "more.jsonl").write_text('{"text": 1}\n{"text": "a"}\n' * 12, encoding="utf-8")
    (tmp_path / "corpus" / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert compiled(tmp_path, tiny_llama) == 0
    assert f"info {tmp_path / 'bank'} --rejects" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(["info", str(tmp_path / "bank"), "--rejects"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {len(line) for line in lines} == {4}
    assert ["unsupported", "picture.png"] in [line[:2] for line in lines]
    assert sum(line[1] == "more.jsonl" for line in lines) == 12
    with pytest.raises(SystemExit):
        run(["info", str(tmp_path / "bank"), "--rejects", "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[row["kind"], row["source"], row["where"], row["reason"]] for row in found] == lines


def test_standard_input_may_be_closed(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert compiled(place, tiny_llama) == 0
    with pytest.raises(SystemExit) as ended:
        run(["compile", "-", "-o", str(place / "other"), "--model", str(tiny_llama)])
    assert ended.value.code == 2
    assert "is closed" in capsys.readouterr().err


def test_a_result_file_has_a_directory_and_words_for_an_interrupt(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiled(place, tiny_llama, "--result", str(place / "nowhere" / "r.json")) == 2
    assert "nowhere is no directory" in capsys.readouterr().err
    monkeypatch.setattr(build_module, "compile_bank", _raises(KeyboardInterrupt()))
    assert compiled(place, tiny_llama, "--result", str(place / "r.json")) == 130
    assert "run the same command again" in json.loads((place / "r.json").read_text())["message"]


def test_what_is_excluded_is_counted_where_nothing_is_left(
    place: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sum(path.is_file() for path in (place / "corpus").rglob("*"))
    capsys.readouterr()
    assert compiled(place, tiny_llama, "--exclude", "*") == 3
    assert f"{files} excluded" in capsys.readouterr().err


def _raises(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (MemoryError(), 6),
        (OSError(28, "No space left on device"), 6),
        (ZeroDivisionError("oops"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_the_result_file_tells_the_end_whatever_it_was(
    error: BaseException, code: int, place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / "result.json"
    assert compiled(place, tiny_llama, "--result", str(file)) == 0
    ended = json.loads(file.read_text(encoding="utf-8"))
    assert (ended["outcome"], ended["exit_code"]) == ("done", 0)
    assert ended["result"]["changed"] is False
    (place / "corpus" / "new.txt").write_text(sentence(7000), encoding="utf-8")
    monkeypatch.setattr(build_module, "shard_corpus", _raises(error))
    assert compiled(place, tiny_llama, "--result", str(file)) == code
    ended = json.loads(file.read_text(encoding="utf-8"))
    assert (ended["outcome"], ended["exit_code"]) == ("failed", code)
    assert ended["error"] == type(error).__name__


def test_while_a_build_runs_its_result_file_says_so(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / "result.json"
    seen: list[str] = []
    original = build_module.resolve

    def look(*given: Any) -> Any:
        seen.append(json.loads(file.read_text(encoding="utf-8"))["outcome"])
        return original(*given)

    monkeypatch.setattr(build_module, "resolve", look)
    assert compiled(place, tiny_llama, "--result", str(file), "--max-rejects", "nonsense") == 2
    assert json.loads(file.read_text(encoding="utf-8"))["error"] == "UsageError"
    assert compiled(place, tiny_llama, "--result", str(file)) == 0
    assert seen == ["running"]
