"""How much sooner is ``compile`` done with two worker processes than with one, where nothing is encoded?

    python tests/benchmarks/workers.py                        # this project's own texts, over and over
    python tests/benchmarks/workers.py --source docs/ --model DIR --rounds 5

Builds of text only take turns; times are those of whole commands, start of Python and imports included. The
median ratio is to be at least 1.5. A corpus that is just large enough for a second process is to take at most
5 % longer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "README.md",
    "CHANGELOG.md",
    "formats/SPEC.md",
    "examples/m3_mini/README.md",
    "tests/faults/README.md",
)
WANTED = 1.5
SLOWER = 1.05
SMALL = 5_000_000
FILE = 1_000_000


def write_corpus(path: Path, size: int) -> None:
    """A directory of JSON lines, about ``size`` bytes: this project's own texts again and again, a number in
    every sentence, so that no two chunks are equal. Of a megabyte each, for one file is one piece of work."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in TEXTS]
    path.mkdir()
    number = 0
    for at in range(-(-size // FILE)):
        written = 0
        with (path / f"{at:04d}.jsonl").open("w", encoding="utf-8") as file:
            while written < FILE:
                number += 1
                text = texts[number % len(texts)].replace(". ", f" {number}. ")
                written += file.write(json.dumps({"text": text}) + "\n")


def seconds_of_build(source: Path, bank: Path, model: str, workers: int) -> tuple[float, dict[str, float]]:
    """Seconds of the whole command, and of the stages that took any."""
    shutil.rmtree(bank, ignore_errors=True)
    command = [sys.executable, "-m", "m3build_cli.main", "compile", str(source), "-o", str(bank)]
    command += ["--model", model, "--text-only", "--workers", str(workers), "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    passed = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"compile ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return passed, {stage["name"]: stage["seconds"] for stage in json.loads(done.stdout)["stages"]}


def ratio(source: Path, model: str, place: Path, rounds: int) -> float:
    """The median of one worker's time over that of two, of rounds in which both take their turn."""
    ratios = []
    for _ in range(rounds):
        taken = {}
        for workers in (1, 2):
            taken[workers], stages = seconds_of_build(source, place / "bank", model, workers)
            each = ", ".join(f"{name} {value:.1f}" for name, value in stages.items() if value > 0.05)
            print(f"  --workers {workers}: {taken[workers]:.1f} s ({each})", flush=True)
        ratios.append(taken[1] / taken[2])
    return statistics.median(ratios)


def main() -> None:
    """Measure, print, and fail where two workers are not worth it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, help="what to compile; the project's texts over and over otherwise"
    )
    parser.add_argument("--model", default="m3-mini", help="whose tokenizer to cut with")
    parser.add_argument("--megabytes", type=float, default=40, help="of text without --source")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to work; a temporary directory otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        place = Path(name)
        small = place / "small"
        write_corpus(small, SMALL)
        large = arguments.source or place / "large"
        if arguments.source is None:
            write_corpus(large, round(arguments.megabytes * 1e6))
        print("the corpus", flush=True)
        faster = ratio(large, arguments.model, place, arguments.rounds)
        print("5 MB", flush=True)
        slower = 1 / ratio(small, arguments.model, place, arguments.rounds)
    print(f"two workers: {faster:.2f} times as fast (wanted {WANTED}); with 5 MB {slower:.2f} times the time")
    if faster < WANTED or slower > SLOWER:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
