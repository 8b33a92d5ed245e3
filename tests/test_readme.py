"""What the README says runs: its tour, its Python, its table of exit codes."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from m3build_cli.main import run
from m3build_formats import errors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a copy of the examples."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", place / "examples")
    return place


def commands(text: str) -> list[list[str]]:
    """The m3build commands of a shell block."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("m3build ")]


def test_the_first_command_and_the_tour_run_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    first = re.search(r"\.venv/bin/(m3build compile .*)\n", README)
    assert first is not None
    tour = README[README.index("## Five minutes") : README.index("From Python:")]
    listed = [shlex.split(first[1])]
    for block in re.findall(r"```sh\n(.*?)```", tour, re.S):
        listed += commands(block)
    assert len(listed) >= 7
    for command in listed:
        with pytest.raises(SystemExit) as ended:
            run(command[1:])
        assert ended.value.code == 0, command


def test_the_python_examples_run_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    compiles, generates = re.findall(r"```python\n(.*?)```", README, re.S)
    (workplace / "compiles.py").write_text(compiles, encoding="utf-8")
    (workplace / "generates.py").write_text(generates, encoding="utf-8")
    runpy.run_path(str(workplace / "compiles.py"))
    assert "references encoded" in capsys.readouterr().out
    runpy.run_path(str(workplace / "generates.py"))
    read = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert 1 <= len(read) <= 5
    assert all(read)


def test_every_exit_code_of_an_error_stands_in_the_table() -> None:
    table = README[README.index("## Exit codes") :]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.M3Error)
    ]
    assert {found.exit_code for found in classes} <= listed
    assert {0, 1} <= listed
    assert "| 130, 143 |" in table
