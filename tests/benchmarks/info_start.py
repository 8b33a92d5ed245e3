"""How long ``m3build info`` takes beyond an empty Python start, on a bank with many shards.

    python tests/benchmarks/info_start.py BANK

Prints the medians of alternating runs; the difference is to stay under 0.3 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tests/benchmarks/info_start.py BANK")
    empty, info = [], []
    for _ in range(15):
        empty.append(seconds([sys.executable, "-c", "pass"]))
        info.append(seconds([sys.executable, "-m", "m3build_cli.main", "info", sys.argv[1], "--json"]))
    print(
        f"empty Python start {statistics.median(empty):.3f} s, m3build info {statistics.median(info):.3f} s"
    )
    print(f"difference {statistics.median(info) - statistics.median(empty):.3f} s")


if __name__ == "__main__":
    main()
