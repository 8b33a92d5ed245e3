"""``m3build gc`` and ``m3build merge``: what they print, their JSON, their exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from m3build_cli.main import run
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.commit import BankWriter

TEXTS = {
    "x": {"a.txt": "The first text is about ferrets.", "b.txt": "The second one is about otters."},
    "y": {"b.txt": "The second one is about otters.", "c.txt": "The third one is about badgers."},
    "z": {"b.txt": "The second one is about walruses now."},
}


def end_of(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert end_of(*arguments, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Banks a, b and c over the texts x, y and z; b and c with the codec of a."""
    directory = tmp_path_factory.mktemp("banks")
    options: list[object] = ["--model", tiny_llama, "--progress", "none"]
    for corpus, bank in (("x", "a"), ("y", "b"), ("z", "c")):
        (directory / corpus).mkdir()
        for name, text in TEXTS[corpus].items():
            (directory / corpus / name).write_text(text, encoding="utf-8")
        assert end_of("compile", directory / corpus, "-o", directory / bank, *options) == 0
        options = [*options[:4], "--codec-from", directory / "a"]
    return directory


@pytest.fixture
def bank(place: Path, tmp_path: Path) -> Path:
    """A copy of bank a with three old versions: all texts, without the first, and a third text in its
    stead."""
    shutil.copytree(place / "a", tmp_path / "bank")
    shutil.copytree(place / "x", tmp_path / "x")
    (tmp_path / "x" / "a.txt").unlink()
    compile_again = ["compile", tmp_path / "x", "-o", tmp_path / "bank", "--progress", "none"]
    assert end_of(*compile_again) == 0
    (tmp_path / "x" / "n.txt").write_text("A new text is about stoats.", encoding="utf-8")
    assert end_of(*compile_again) == 0
    moment = time.time() - 10 * 86400
    for file in (tmp_path / "bank").rglob("*"):
        os.utime(file, (moment, moment))
    return tmp_path / "bank"


def test_gc_says_what_went_and_what_stays(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bank / "data" / "notes.txt").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    assert end_of("gc", bank, "--keep", "2", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "would remove version 1 and 5 data files, " in text
    assert list_versions(bank) == [1, 2, 3]
    assert end_of("gc", bank, "--keep", "2") == 0
    text = capsys.readouterr().out
    assert "removed version 1 and 5 data files, " in text
    assert "kept versions 2 to 3" in text
    assert "data/notes.txt: not made by m3build" in text
    assert list_versions(bank) == [2, 3]
    assert end_of("gc", bank) == 0
    assert "removed no version and 0 data files" in capsys.readouterr().out
    assert end_of("verify", bank) == 0


def test_gc_prints_one_json_object(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answer_of(capsys, "gc", bank, "--keep", "1", "--grace", "30d")
    assert (answer["versions_kept"], answer["versions_kept_by_grace"]) == ([1, 2, 3], [1, 2])
    planned = answer_of(capsys, "gc", bank, "--keep", "1", "--grace", "7d", "--dry-run")
    answer = answer_of(capsys, "gc", bank, "--keep", "1", "--grace", "7d")
    assert answer == {**planned, "dry_run": False}
    assert (answer["versions_kept"], answer["versions_removed"]) == ([3], [1, 2])
    assert answer["files_removed"] > 0
    assert answer["bytes_freed"] > 0
    assert "codec" not in answer


def test_gc_purge_leaves_no_trace_and_says_what_it_cannot_reach(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any(b"ferrets" in file.read_bytes() for file in (bank / "data").iterdir())
    # As a stopped build would leave it.
    (bank / "build" / "piece").write_text("ferrets", encoding="utf-8")
    kept = [file for file in (bank / "build").rglob("*") if file.is_file()]
    capsys.readouterr()
    assert end_of("gc", bank, "--purge") == 0
    text = capsys.readouterr().out
    assert f"build/: {len(kept)} files " in text
    assert "embedder: may have been trained on documents that have left (trained by version 1" in text
    assert "compile SOURCES" in text
    assert "--retrain" in text
    assert "backups, snapshots and copies" in text
    assert not any(b"ferrets" in file.read_bytes() for file in bank.rglob("*") if file.is_file())
    again = answer_of(capsys, "gc", bank, "--purge")
    assert (again["files_removed"], again["embedder"]["trained_on_what_left"]) == (0, "unknown")
    assert end_of("search", bank, "stoats") == 0


def test_after_a_retraining_a_purge_finds_nothing_to_warn_of(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = bank.parent / "x"
    assert end_of("compile", corpus, "-o", bank, "--retrain", "--progress", "none") == 0
    answer = answer_of(capsys, "gc", bank, "--purge")
    assert answer["codec"]["trained_on_what_left"] == answer["embedder"]["trained_on_what_left"] == "no"


def test_gc_ends_with_the_code_of_what_is_wrong(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of("gc", tmp_path / "nothing") == 2
    assert end_of("gc", bank, "--keep", "0") == 2
    assert end_of("gc", bank, "--grace", "soon") == 2
    assert end_of("gc", bank, "--purge", "--keep", "2") == 2
    capsys.readouterr()
    with BankWriter(bank):
        assert end_of("gc", bank) == 8
        assert f"process {os.getpid()}" in capsys.readouterr().err
    manifest = bank / "versions" / "00000003.json"
    data = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(data[:-5])
    assert end_of("gc", bank) == 5
    assert "nothing was removed" in capsys.readouterr().err
    assert len(os.listdir(bank / "versions")) == 3


def test_gc_starts_without_anything_heavy(bank: Path) -> None:
    code = (
        "import sys; from m3build_cli.main import cli;"
        "cli.main(['gc', sys.argv[1], '--keep', '1'], standalone_mode=False);"
        "import m3build; m3build.gc(sys.argv[1]);"
        "bad = {'torch', 'transformers', 'faiss', 'pyarrow', 'numpy', 'tokenizers'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bank)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list_versions(bank) == [3]


def test_merge_prints_what_came_together(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert end_of("merge", place / "a", place / "b", "-o", tmp_path / "m", "--progress", "lines") == 0
    printed = capsys.readouterr()
    assert "version 1, 3 documents, 3 chunks" in printed.out
    assert "from        a, version 1: 2 documents" in printed.out
    assert "shared      1 documents" in printed.out
    assert "copied      3 memories, none encoded" in printed.out
    assert "copy: 3 of 3 memories" in printed.err
    assert end_of("search", tmp_path / "m", "badgers", "-k", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["text"] == TEXTS["y"]["c.txt"]
    assert end_of("verify", tmp_path / "m") == 0


def test_merge_prints_one_json_object(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answer_of(capsys, "merge", place / "a", place / "b", "-o", tmp_path / "m", "--progress", "none")
    assert (answer["copied"], answer["repeated"], answer["shared_documents"]) == (3, 0, 1)
    assert answer["info"]["operation"] == "merge"
    assert answer["sha256"] == read_manifest(tmp_path / "m").sha256
    assert [bank["name"] for bank in answer["banks"]] == ["a", "b"]


def test_merge_ends_with_the_code_of_what_is_wrong(
    place: Path, tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c, out = place / "a", place / "b", place / "c", tmp_path / "out"
    assert end_of("merge", a, b) == 2
    assert end_of("merge", a, "-o", out) == 2
    assert end_of("merge", a, b, "-o", b) == 2
    assert end_of("merge", a, tmp_path / "nothing", "-o", out) == 2
    capsys.readouterr()
    assert end_of("merge", a, c, "-o", out, "--progress", "none") == 3
    assert "'b.txt'" in capsys.readouterr().err
    other = tmp_path / "other"
    options = ["--model", tiny_llama, "--sparse-tokens", "3", "--progress", "none"]
    assert end_of("compile", place / "y", "-o", other, *options) == 0
    assert end_of("merge", a, other, "-o", out, "--progress", "none") == 4
    assert "memory.sparse_tokens is 8 in" in capsys.readouterr().err
    assert not out.exists()
    assert end_of("merge", a, c, "-o", out, "--prefer", "last", "--progress", "none") == 0
    assert "replaced    1 documents" in capsys.readouterr().out
    assert end_of("merge", a, c, "-o", out, "--prefer", "last", "--progress", "none") == 2
