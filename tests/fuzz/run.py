"""Fuzzes a target in a process of its own and keeps every input that it did not survive.

    python tests/fuzz/run.py TARGET --minutes 10 [--seed 1] [--engine own|atheris] [--findings DIRECTORY]

TARGET is a reader of banks (manifest, tables, codec, embedder, index; banks: all of them), a reader of
sources (text, markdown, html, rst, jsonl, json, csv, tsv, parquet, arrow, compressed; sources: all of them)
or all. Minutes are of the processor. The engine is atheris, guided by coverage, where it is installed, else
the mutations of `mutate.py` alone. A finding is an input with which the process ended: by a signal (SIGSEGV,
SIGABRT; SIGPROF after 10 seconds on one input; SIGKILL where it waited for two minutes) or by an exception
that is not typed. The exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from worker import NOTES_BYTES, NOTES_HEADER

HERE = Path(__file__).resolve().parent
BANKS = ("manifest", "tables", "codec", "embedder", "index")
SOURCES = ("text", "markdown", "html", "rst", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "compressed")
NAMES = (*BANKS, *SOURCES)
GROUPS = {"banks": BANKS, "sources": SOURCES, "all": NAMES}
WORKER = HERE / "worker.py"
PATIENCE_SECONDS = 120
LOOK_SECONDS = 0.05
MOST_FINDINGS = 20


@dataclass
class Result:
    """What a run did: inputs read, those of them accepted whole, and what ended the process with which
    input."""

    executions: int = 0
    accepted: int = 0
    findings: dict[str, bytes] = field(default_factory=dict)


def fuzz(
    name: str, engine: str, seed: int, seconds: float, executions: int = 0, worker: Path = WORKER
) -> Result:
    """Fuzzes one target for ``seconds`` of the processor or so many ``executions`` (0: no limit), with a new
    process after each finding."""
    result = Result()
    spent = 0.0
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as place:
        notes, log = Path(place, "notes"), Path(place, "log")
        while spent < seconds and len(result.findings) < MOST_FINDINGS:
            if executions and result.executions >= executions:
                break
            notes.write_bytes(bytes(NOTES_BYTES))
            rest = executions - result.executions if executions else 0
            before = _children_seconds()
            command = [worker, name, engine, seed, seconds - spent, rest, notes]
            code = _run([sys.executable, *map(str, command)], notes, log)
            spent += _children_seconds() - before
            data = notes.read_bytes()
            count, accepted, length = NOTES_HEADER.unpack_from(data)
            result.executions += count
            result.accepted += accepted
            if code == 0:
                break
            if code == -signal.SIGINT:
                raise KeyboardInterrupt
            last = log.read_text(encoding="utf-8", errors="replace").strip()
            words = f"{_how(code)}: {_cause(last)}"
            if code > 0 and "Error" not in words:
                # An end without the words of an exception: whatever else there is helps.
                words = f"{words} {last[-1000:]}"
            if not count:
                raise RuntimeError(f"the worker of {name} did not start: {last[-2000:]}")
            found = data[NOTES_HEADER.size : NOTES_HEADER.size + length]
            if words not in result.findings or len(found) < len(result.findings[words]):
                result.findings[words] = found
            seed += 1_000_003
    return result


def _run(command: list[str], notes: Path, log: Path) -> int:
    """The exit code of a worker, which is killed where it waits."""
    with log.open("wb") as output:
        # A worker that ends suddenly leaves its files where they go with ours.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(log.parent)}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        # What passes is counted, not read from a clock: this process may be stopped too.
        seen, passed = (b"", b""), 0.0
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            passed += LOOK_SECONDS
            with notes.open("rb") as file:
                now = (file.read(8), _work_of(process.pid))
            if now != seen:
                seen, passed = now, 0.0
            elif passed > PATIENCE_SECONDS:
                process.kill()
        return process.wait()


def _work_of(process: int) -> bytes:
    """Changes for as long as a process gets on, however slowly a busy machine lets it, and while it is
    stopped from outside; the same where it waits for something, or where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return b""
    stopped = repr(time.monotonic()).encode() if fields[0] in (b"T", b"t") else b""
    return b" ".join([*fields[11:13], stopped])


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _cause(log: str) -> str:
    """The place and words of the last Python error in a log, by which findings are told apart."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ") and "/m3build" in line]
    errors = [line for line in lines if "Error" in line and not line.startswith("File ")]
    return " ".join([*(places[-1:]), *(errors[-1:])])[:300]


def save(findings: dict[str, bytes], name: str, directory: Path) -> list[Path]:
    """Writes each input as a file of ``directory``, named by its target and hash."""
    paths = []
    for data in findings.values():
        path = directory / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        directory.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        paths.append(path)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=[*NAMES, *GROUPS])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["own", "atheris"])
    parser.add_argument("--findings", type=Path, default=HERE / "findings")
    arguments = parser.parse_args()
    engine = arguments.engine or ("atheris" if importlib.util.find_spec("atheris") else "own")
    failed = False
    for name in GROUPS.get(arguments.target, (arguments.target,)):
        result = fuzz(name, engine, arguments.seed, 60 * arguments.minutes)
        failed |= bool(result.findings)
        print(
            f"{name} ({engine}, seed {arguments.seed}): {result.executions:,} inputs, "
            f"{result.accepted:,} accepted, {len(result.findings)} findings",
            flush=True,
        )
        for words, path in zip(result.findings, save(result.findings, name, arguments.findings), strict=True):
            print(f"  {path}: {words}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
