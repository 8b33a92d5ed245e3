"""The workflow and the cron job of examples/nightly_rebuild run as they stand: on a good corpus, on an edited
one that passes the gate, and on one that does not, after which the good version is current again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_corpus import sentence
from warm_path import warm_path
from workflow_runner import Job, run_job

from m3build.bank import open_bank
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.history import same_contents

HERE = Path(__file__).parents[2] / "examples" / "nightly_rebuild"
QUESTIONS = 8


@dataclass(frozen=True)
class Place:
    """A repository with corpus and gate, and what runs there."""

    directory: Path
    path: str
    commands: list[list[str]]

    @property
    def bank(self) -> Path:
        return self.directory / "bank"

    @property
    def good(self) -> int:
        return int((self.directory / "bank.good").read_text(encoding="utf-8"))

    def write(self, number: int, text: str) -> None:
        (self.directory / "corpus" / f"{number:02d}.txt").write_text(text, encoding="utf-8")

    def spoil(self) -> None:
        """Most questions have no answer any longer, though no document is gone."""
        for number in range(QUESTIONS - 1):
            self.write(number, sentence(9000 + number))

    def commands_since(self, number: int) -> list[str]:
        return [arguments[0] for arguments in self.commands[number:]]


@pytest.fixture(scope="module")
def commands() -> Iterator[tuple[Path, list[list[str]]]]:
    with warm_path() as found:
        yield found


@pytest.fixture
def place(commands: tuple[Path, list[list[str]]], tmp_path: Path, tiny_llama: Path) -> Place:
    binaries, ran = commands
    for name in ("corpus", "gate", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "model").symlink_to(tiny_llama)
    (tmp_path / "requirements.txt").write_text("# m3build, and what it needs\n", encoding="utf-8")
    # What is GitHub's and the network's: both only say what they were asked for.
    for name in ("gh", "pip"):
        stub = tmp_path / "bin" / name
        stub.write_text(f'#!/bin/sh\necho {name} "$@" >>"{tmp_path}/asked"\n', encoding="utf-8")
        stub.chmod(0o755)
    # A python3 that is there, whatever else is on the machine.
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    path = os.pathsep.join([str(tmp_path / "bin"), str(binaries), os.environ["PATH"]])
    found = Place(tmp_path, path, ran)
    for number in range(QUESTIONS):
        found.write(number, " ".join(sentence(number * 40 + i) for i in range(5)))
    queries = [{"_id": str(n), "text": sentence(n * 40 + 2)} for n in range(QUESTIONS)]
    (tmp_path / "gate" / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    qrels = "".join(f"{n}\t{n:02d}.txt\t1\n" for n in range(QUESTIONS))
    (tmp_path / "gate" / "qrels.tsv").write_text(qrels, encoding="utf-8")
    return found


def workflow(place: Place, event: str = "schedule") -> Job:
    github = {"event_name": event, "token": "a-token", "event.pull_request.number": "17"}
    return run_job(HERE / "workflow.yml", "rebuild", place.directory, place.path, github)


def cron(place: Place, **environment: str) -> tuple[int, str]:
    """The exit code, and what would be mailed."""
    done = subprocess.run(
        ["sh", str(HERE / "nightly.sh"), "corpus", "bank", "model", "gate"],
        cwd=place.directory,
        env={"PATH": place.path, "LC_ALL": "C.UTF-8", "PAUSE": "0", "TRIES": "2", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def holds_the_same(bank: Path, one: int, other: int) -> bool:
    return same_contents(read_manifest(bank, one), read_manifest(bank, other))


def test_the_workflow_keeps_what_passes_and_goes_back_from_what_does_not(place: Place) -> None:
    first = workflow(place)
    assert first.succeeded, first.printed
    assert (list_versions(place.bank), place.good) == ([1], 1)
    assert [use.split("@")[0] for use in first.used] == [
        "actions/checkout",
        "actions/setup-python",
        "actions/cache/restore",
        "actions/cache/save",
        "actions/upload-artifact",
    ]
    assert '"stage": "encode"' in first.printed
    assert "made from none" in (place.directory / "report.md").read_text(encoding="utf-8")

    place.write(QUESTIONS, sentence(7000))
    edited = workflow(place, "pull_request")
    assert edited.succeeded, edited.printed
    assert (list_versions(place.bank), place.good) == ([1, 2], 2)
    report = (place.directory / "report.md").read_text(encoding="utf-8")
    assert f"- added `{QUESTIONS:02d}.txt`" in report
    asked = (place.directory / "asked").read_text(encoding="utf-8").splitlines()
    assert "gh pr comment 17 --body-file report.md --edit-last --create-if-none" in asked
    assert report in (place.directory / ".github_step_summary").read_text(encoding="utf-8")

    ran = len(place.commands)
    place.spoil()
    with open_bank(place.bank, version=place.good) as reader:
        failed = workflow(place)
        assert reader.search(sentence(2), k=1).sources[0][0][0].document == "00.txt"
    assert not failed.succeeded
    assert failed.outcomes["gate"] == "failure"
    assert place.commands_since(ran) == ["compile", "diff", "eval", "rollback"]
    assert (list_versions(place.bank), place.good) == ([1, 2, 3, 4], 4)
    assert holds_the_same(place.bank, 4, 2)
    assert not holds_the_same(place.bank, 3, 2)
    assert "Version 3 did not pass" in (place.directory / "report.md").read_text(encoding="utf-8")
    assert failed.used[-1].startswith("actions/cache/save"), "kept, and not handed on"

    shutil.rmtree(place.directory / "corpus")
    (place.directory / "corpus").mkdir()
    nothing = workflow(place)
    assert nothing.outcomes["compile"] == "failure"
    assert nothing.outcomes["gate"] == "skipped"
    assert "nothing to compile" in (place.directory / "report.md").read_text(encoding="utf-8")
    assert list_versions(place.bank) == [1, 2, 3, 4]


def test_the_cron_job_keeps_what_passes_and_goes_back_from_what_does_not(place: Place) -> None:
    place.write(QUESTIONS, sentence(7000))
    code, mail = cron(place)
    assert (code, list_versions(place.bank), place.good) == (0, [1], 1), mail
    assert "made from none" in mail

    place.write(QUESTIONS, sentence(7001))
    code, mail = cron(place)
    assert (code, list_versions(place.bank), place.good) == (0, [1, 2], 2), mail
    assert f"- changed `{QUESTIONS:02d}.txt`" in mail
    result = json.loads((place.directory / "bank.result.json").read_text(encoding="utf-8"))
    assert (result["outcome"], result["result"]["encoded"]) == ("done", 1)
    lines = (place.directory / "bank.log").read_text(encoding="utf-8").splitlines()
    assert any(json.loads(line).get("stage") == "encode" for line in lines)

    place.spoil()
    code, mail = cron(place, REQUIRE="hit@1>=0.9")
    assert (code, list_versions(place.bank), place.good) == (7, [1, 2, 3, 4], 4), mail
    assert "version 3 of bank did not pass the gate (exit code 7)" in mail
    assert "required >=0.9" in mail
    assert holds_the_same(place.bank, 4, 2)


def test_the_cron_job_ends_with_the_code_of_what_stopped_it(place: Place, tmp_path: Path) -> None:
    code, mail = cron(place, REQUIRE="hit@1>2")
    assert code == 7
    assert "none to go back to" in mail
    assert not (place.directory / "bank.good").exists(), "no version is good"
    shutil.rmtree(place.directory / "corpus")
    (place.directory / "corpus").mkdir()
    code, mail = cron(place)
    assert code == 3
    assert "nothing to compile" in mail

    # Someone else writes: it tries as often as it is told to.
    from m3build_formats.commit import BankWriter

    ran = len(place.commands)
    place.write(0, sentence(1))
    with BankWriter(place.bank):
        code, mail = cron(place)
    assert code == 8, mail
    assert place.commands_since(ran) == ["compile", "compile"]


def test_the_crontab_names_the_script_with_its_arguments() -> None:
    table = (HERE / "crontab").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in table if "nightly.sh" in line]
    assert len(line.split()[:5]) == 5
    assert len(line.split()[6:]) == 4
    assert os.access(HERE / "nightly.sh", os.X_OK)


@pytest.mark.skipif(shutil.which("dash") is None, reason="needs dash, a shell that knows POSIX alone")
def test_the_script_is_for_any_posix_shell() -> None:
    done = subprocess.run(["dash", "-n", str(HERE / "nightly.sh")], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
