"""The short form of many processes at one bank."""

from __future__ import annotations

from pathlib import Path

import pytest
from concurrency_cases import ConcurrencyCases
from interleavings import interleave
from tally import Tally


def test_no_commit_is_lost_or_doubled_and_readers_see_whole_versions(tmp_path: Path) -> None:
    tally = Tally("concurrency")
    ConcurrencyCases(tmp_path, tally).writers(3, 5)
    tally.check()
    assert tally.counts["commits"] == 15
    assert tally.counts["versions opened by readers"] > 1


def test_a_collector_disturbs_neither_writers_nor_readers(tmp_path: Path) -> None:
    tally = Tally("concurrency")
    ConcurrencyCases(tmp_path, tally).writers_and_collector(2, 5, readers=1)
    tally.check()
    assert tally.counts["commits beside a collector"] == 10


def test_threads_of_one_process_take_turns_too(tmp_path: Path) -> None:
    tally = Tally("concurrency")
    ConcurrencyCases(tmp_path, tally).threads(4, 3)
    tally.check()
    assert tally.counts["commits by threads"] == 12


@pytest.mark.parametrize("case", ["killed_while_holding", "inherited_lock", "stale_lock_files"])
def test_a_lock_ends_with_its_holder_and_nothing_else_locks(tmp_path: Path, case: str) -> None:
    tally = Tally("concurrency")
    getattr(ConcurrencyCases(tmp_path, tally), case)()
    tally.check()


def test_a_writer_killed_at_any_moment_leaves_a_whole_bank(tmp_path: Path) -> None:
    tally = Tally("concurrency")
    ConcurrencyCases(tmp_path, tally).killed_writers(8)
    tally.check()
    assert tally.counts["writers killed at random"] == 8


def test_what_another_process_does_between_two_calls_disturbs_no_reader(tmp_path: Path) -> None:
    tally = Tally("interleavings")
    interleave(tmp_path, tally, step=67)
    tally.check()
    assert len(tally.counts) == 4
