"""Runs the full form of these tests, and prints what was counted.

    python tests/rebuilds/full.py laws [--scripts 300]     # half an hour of a core
    python tests/rebuilds/full.py kills [--builds 200]

Ends with 1 where a law does not hold, with the shortest script that shows it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
sys.path[:0] = [str(_HERE), str(_HERE.parent), *(str(_ROOT / name) for name in ("formats", "cli", "."))]

from hypothesis import HealthCheck, given, settings  # noqa: E402
from models import save_tiny_model  # noqa: E402


def laws(model: Path, scripts: int) -> Counter[str]:
    """Random scripts, a third of them killed over and over from an empty bank on."""
    from rebuild_laws import Laws, Step, steps

    fresh = settings(
        max_examples=scripts - scripts // 3, deadline=None, suppress_health_check=list(HealthCheck)
    )
    killed = settings(fresh, max_examples=scripts // 3)
    with Laws(model) as found:

        @fresh
        @given(script=steps(3))
        def incremental(script: list[Step]) -> None:
            found.incremental_is_fresh(script)

        @killed
        @given(script=steps(4))
        def stopped(script: list[Step]) -> None:
            found.killed_is_fresh(script, "SQ8")

        incremental()
        stopped()
        return found.counts


def kills(model: Path, builds: int) -> Counter[str]:
    """Real processes, each killed twice, then left to finish."""
    from process_kills import kill_builds

    with tempfile.TemporaryDirectory(prefix="m3build-kills-") as place:
        return kill_builds(Path(place), model, builds, seed=0)


ROWS: dict[str, tuple[Callable[[Path, int], Counter[str]], int]] = {
    "laws": (laws, 300),
    "kills": (kills, 200),
}


def main() -> int:
    """The exit code: 0 where every law held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--scripts", "--builds", type=int, dest="count", help="how many to try")
    options = parser.parse_args()
    run, count = ROWS[options.row]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="m3build-model-") as place:
        model = save_tiny_model(Path(place) / "model")
        try:
            counts = run(model, options.count or count)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            return 1
    print(f"{options.row}: held")
    print("\n".join(f"  {number:>9,} {words}" for words, number in counts.items()))
    print(f"  ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
