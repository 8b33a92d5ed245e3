"""Memory grows far less than the corpus: the small form of tests/benchmarks/memory_growth.py."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_four_times_the_text_takes_far_less_than_four_times_the_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.memory_growth import measure

    _, (small, large) = measure([500_000, 2_000_000], 64, tmp_path)
    # Samples that are bounded in number are not full yet at these sizes, so some growth is due; memory in
    # proportion to the corpus would be +300 %.
    assert large / small - 1 < 0.75, capsys.readouterr().out
