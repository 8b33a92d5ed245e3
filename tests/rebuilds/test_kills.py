"""Real processes, killed at random moments, on a few builds; ``full.py`` tries hundreds."""

from __future__ import annotations

import os
from pathlib import Path

from process_kills import kill_builds

# A build takes some four seconds of the processor with its kills. CI, for which nobody waits, asks for 20.
BUILDS = int(os.environ.get("M3BUILD_KILLED_BUILDS", "6"))


def test_builds_that_are_killed_twice_and_run_again_end_in_the_bytes_of_one_that_was_not(
    tmp_path: Path, tiny_llama: Path
) -> None:
    counts = kill_builds(tmp_path, tiny_llama, BUILDS, seed=1)
    assert counts["builds killed twice: equal to one that nobody killed"] == BUILDS
