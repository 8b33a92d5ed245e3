"""A build that is told to stop, stops with the code for it, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m3build_cli.main import run
from m3build_formats.bank import list_versions
from m3build_formats.verify import verify


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_build_says_how_to_go_on_and_then_goes_on(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    tiny_llama: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "many.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for i in range(400):
            file.write(
                json.dumps({"text": f"Record {i} is about {i * 7919} things and {i % 13} more of them."})
                + "\n"
            )
    bank = tmp_path / "bank"
    command = [sys.executable, "-m", "m3build_cli.main", "compile", str(source), "-o", str(bank)]
    command += ["--model", str(tiny_llama), "--codec", "SQ8", "--progress", "lines"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell starts background jobs with SIGINT ignored, and tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen = ""
    # Most of the work is still to be done then, so that the build is not done before it hears of the signal.
    while "shard:" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == code, rest
    assert "run the same command again" in rest
    assert "Traceback" not in rest
    assert list_versions(bank) == []
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run([*command[3:], "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1
    assert not verify(bank).problems
