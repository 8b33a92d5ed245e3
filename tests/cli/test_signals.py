"""A build that is told to stop, stops with the code for it, and the same command goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from warm_processes import Command, Surroundings

from m3build_formats.bank import list_versions
from m3build_formats.verify import verify


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_build_says_how_to_go_on_and_then_goes_on(
    number: signal.Signals, code: int, tmp_path: Path, tiny_llama: Path
) -> None:
    source = tmp_path / "many.jsonl"
    lines = (f"Record {i} is about {i * 7919} things and {i % 13} more of them." for i in range(200))
    source.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    bank = tmp_path / "bank"
    arguments = ["compile", str(source), "-o", str(bank), "--model", str(tiny_llama), "--codec", "SQ8"]
    command = Command([*arguments, "--progress", "lines"], Surroundings(tmp_path), tmp_path)
    # Most of the work is still to be done then, so that the build is not done before it hears of the signal.
    while "chunk:" not in command.errors:
        assert command.runs, command.errors
        time.sleep(0.005)
    command.send(number)
    assert command.wait() == code, command.errors
    assert "run the same command again" in command.errors
    assert "Traceback" not in command.errors
    assert list_versions(bank) == []
    again = Command([*arguments, "--json"], Surroundings(tmp_path), tmp_path)
    assert again.wait() == 0, again.errors
    assert json.loads(again.output)["version"] == 1
    assert not verify(bank).problems
