"""Some seeded mutations for each target, and every input that was ever a finding."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import run
from mutate import LARGEST, mutate
from run import BANKS, SOURCES, fuzz

from m3build.corpus.registry import formats

HERE = Path(__file__).resolve().parent
CASES = sorted((HERE / "cases").glob("*"))
EXECUTIONS = {"manifest": 300, "tables": 150, "codec": 500, "embedder": 100, "index": 800}
# The readers of sources as one: a process for each would take half a minute.
EXECUTIONS["sources"] = 600


@pytest.mark.parametrize("name", [*BANKS, "sources"])
def test_a_reader_survives_seeded_mutations(name: str) -> None:
    result = fuzz(name, "own", 7, 60, EXECUTIONS[name])
    assert result.findings == {}
    assert result.executions == EXECUTIONS[name]
    # Some of the mutations are harmless: so the others do get behind the first checks.
    assert 0 < result.accepted < result.executions


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_an_input_that_was_a_finding_is_read_in_peace(path: Path) -> None:
    subprocess.run([sys.executable, HERE / "replay.py", path], check=True)


def test_every_format_of_sources_is_fuzzed() -> None:
    assert set(SOURCES) == {*formats(), "compressed"}


def test_mutations_depend_on_their_seed_alone() -> None:
    data, others = b'{"a":[1,2,{"b":"c"}]}' * 3, [bytes(range(256))]

    def some(seed: int) -> list[bytes]:
        chance = random.Random(seed)
        return [mutate(data, chance, others) for _ in range(200)]

    assert some(1) == some(1) != some(2)
    assert all(len(item) <= LARGEST for item in some(1))


def test_mutations_bear_json_as_deep_as_it_comes() -> None:
    deep = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    shallower = b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"
    for data in (deep, shallower):
        spoilt = {mutate(data, random.Random(seed), [b"other"]) for seed in range(200)}
        assert len(spoilt) > 100


WORKER = """
import ctypes, os, signal, sys
sys.path.insert(0, {place!r})
from worker import Notes
Notes(sys.argv[6]).begin(b"the input")
{code}
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("signal.setitimer(signal.ITIMER_PROF, 0.1)\nwhile True: pass", "SIGPROF"),
        ("raise KeyError('untyped')", "KeyError: 'untyped'"),
        ("print('the last words')\nsys.exit(3)", "exit code 3:  the last words"),
    ],
)
def test_what_ends_a_worker_is_a_finding(code: str, words: str, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER.format(place=str(HERE), code=code), encoding="utf-8")
    ((found, data),) = fuzz("any", "own", 1, 60, 1, worker).findings.items()
    assert words in found
    assert data == b"the input"


def test_an_interrupt_from_outside_is_no_finding(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    code = "signal.signal(signal.SIGINT, signal.SIG_DFL)\nos.kill(os.getpid(), signal.SIGINT)"
    worker.write_text(WORKER.format(place=str(HERE), code=code), encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        fuzz("any", "own", 1, 60, 1, worker)


WAITS = "import time; time.sleep(60)"
COMPUTES = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass"
IS_STOPPED = """
import os, signal, subprocess
subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("code", "end"), [(WAITS, -signal.SIGKILL), (COMPUTES, 0), (IS_STOPPED, 0)])
def test_only_a_worker_that_waits_is_taken_for_one_that_hangs(
    code: str, end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 0.5)
    (tmp_path / "notes").write_bytes(bytes(run.NOTES_BYTES))
    assert run._run([sys.executable, "-c", code], tmp_path / "notes", tmp_path / "log") == end
