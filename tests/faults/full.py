"""Runs the full form of every row of the fault tests, and prints what was counted and found.

    python tests/faults/full.py [--only ROW]

Each row runs in a process of its own, so that a crash of the interpreter is a finding too. Ends with 1 where
anything was found. It takes an hour or two of one core; README.md beside this file has the counts of the last
run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
sys.path[:0] = [str(_HERE), str(_HERE.parent / "formats"), str(_ROOT / "formats"), str(_ROOT)]

from rows import FULL  # noqa: E402
from tally import Tally  # noqa: E402


def main() -> int:
    """The exit code: 0 where no row found anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=FULL, help="run this row alone")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.into is not None:
        tally = Tally(options.only)
        with tally.expect("the row itself"):
            FULL[options.only](tally)
        options.into.write_text(json.dumps([tally.counts, tally.findings, tally.broken]), encoding="utf-8")
        return 0
    broken = 0
    for row in [options.only] if options.only else FULL:
        start = time.monotonic()
        tally = _run(row)
        print("\n".join(tally.lines()), f"  ({time.monotonic() - start:.0f} s)", sep="\n", flush=True)
        broken += tally.broken
    return 1 if broken else 0


def _run(row: str) -> Tally:
    tally = Tally(row)
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory) / "tally.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--only", row, "--into", str(into)]
        code = subprocess.run(command, check=False).returncode
        if into.exists():
            counts, tally.findings, tally.broken = json.loads(into.read_text(encoding="utf-8"))
            tally.counts.update(counts)
        if code:
            tally.find(f"the interpreter ended with {code}")
    return tally


if __name__ == "__main__":
    sys.exit(main())
