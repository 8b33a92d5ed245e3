"""The short form of the errors of the operating system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from read_errors import ReadErrors
from sample_bank import add_version, build_bank
from scenarios import ROWS, SCENARIOS, FirstVersion, Repair, Scenario, SecondVersion, WriterScenario
from tally import Tally
from write_errors import WriteErrors


@pytest.mark.parametrize("make", SCENARIOS, ids=lambda make: make().name)
def test_an_error_while_writing_is_told_and_leaves_a_whole_version(
    make: Callable[[], Scenario], tmp_path: Path
) -> None:
    tally = Tally("errors")
    cases = WriteErrors(make(), tmp_path, tally)
    cases.errors(step=137)
    cases.short_writes(1)
    tally.check()
    assert tally.counts["raised ResourceError"] > 5


@pytest.mark.parametrize("make", [FirstVersion, SecondVersion, Repair])
def test_a_failed_fsync_is_final_and_another_error_is_not(
    make: Callable[[], WriterScenario], tmp_path: Path
) -> None:
    tally = Tally("errors")
    cases = WriteErrors(make(), tmp_path, tally)
    cases.final_syncs()
    cases.second_attempts(step=31)
    tally.check()
    assert tally.counts["failed fsyncs"] > 5
    assert tally.counts["second attempts"]


def test_an_error_while_reading_is_told_and_never_a_wrong_answer(tmp_path: Path) -> None:
    build_bank(tmp_path / "bank", ROWS)
    add_version(tmp_path / "bank")
    tally = Tally("errors")
    cases = ReadErrors(tmp_path / "bank", tally)
    cases.errors(step=31)
    cases.short_reads(2)
    tally.check()
    assert tally.counts["errors in verify"] > 50
