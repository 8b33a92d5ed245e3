"""Real processes, killed at random moments, on a few builds; ``full.py`` tries hundreds."""

from __future__ import annotations

from pathlib import Path

from process_kills import kill_builds

BUILDS = 6


def test_builds_that_are_killed_and_run_again_end_in_the_bytes_of_one_that_was_not(
    tmp_path: Path, tiny_llama: Path
) -> None:
    counts = kill_builds(tmp_path, tiny_llama, BUILDS, seed=1)
    assert counts["builds equal to one that nobody killed"] == BUILDS
    assert counts["killed"] >= BUILDS
