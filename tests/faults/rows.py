"""The rows of the fault tests, each in a full and a short form: what is counted, and how much of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from concurrency_cases import ConcurrencyCases
from corruption_cases import KINDS, CorruptionCases
from crashes import CrashCases, unsynced
from interleavings import interleave
from read_errors import ReadErrors
from sample_bank import add_version, build_bank
from scenarios import ROWS, SCENARIOS, WriterScenario
from tally import Tally
from write_errors import WriteErrors


@contextmanager
def a_place() -> Iterator[Path]:
    """A directory for what is made and thrown away."""
    with tempfile.TemporaryDirectory(prefix="m3build-faults-") as directory:
        yield Path(directory)


def crashes(tally: Tally) -> None:
    """Crashes of the process and losses of power at every call of every scenario."""
    for make in SCENARIOS:
        with a_place() as place:
            cases = CrashCases(make(), place, tally)
            cases.process_deaths()
            cases.power_losses(most=60)
            cases.losses_after_return(most=200)
            cases.second_writers(most=6, between=6)


def errors(tally: Tally) -> None:
    """Every error at every call, writing and reading."""
    for make in SCENARIOS:
        scenario = make()
        with a_place() as place:
            cases = WriteErrors(scenario, place, tally)
            cases.errors()
            cases.short_writes(20)
            if isinstance(scenario, WriterScenario):
                cases.final_syncs()
                cases.second_attempts()
    with a_place() as place, unsynced():
        build_bank(place / "bank", ROWS)
        add_version(place / "bank")
        reading = ReadErrors(place / "bank", tally)
        reading.errors()
        reading.short_reads(50)


def corruption(tally: Tally) -> None:
    """Every bit of a manifest, 10,000 bits of each kind of file, and every other damage."""
    with a_place() as place:
        cases = CorruptionCases(place, tally)
        cases.flip_manifest()
        for kind in KINDS:
            cases.flip_data(kind, 10_000)
            cases.other_sizes(kind)
            cases.other_bytes(kind, 100)
            cases.missing(kind)
        cases.swapped()
        cases.other_manifests()
    with a_place() as place:
        # Three batches of chunks, so that the row named is not always the first.
        many = CorruptionCases(place, tally, rows=(1100,))
        many.flip_data("chunks", 300)
        many.other_sizes("chunks")


def good_banks(tally: Tally) -> None:
    """No false alarm in 1,000 banks of random shape."""
    with a_place() as place:
        CorruptionCases(place, tally).good_banks(1000)


def concurrency(tally: Tally) -> None:
    """Many writers and readers, and writers that are killed."""
    with a_place() as place:
        cases = ConcurrencyCases(place, tally)
        cases.writers(8, 50)
        cases.writers_and_collector(8, 25)
        cases.threads(8, 10)
        cases.killed_writers(300)
        cases.killed_while_holding()
        cases.inherited_lock()
        cases.stale_lock_files()


def interleavings(tally: Tally) -> None:
    """Another process at work between any two calls of a reader."""
    with a_place() as place:
        interleave(place, tally)


def histories(tally: Tally) -> None:
    """Random histories of one bank against a model."""
    from histories import history_settings
    from hypothesis.stateful import run_state_machine_as_test
    from merge_histories import MergeHistories

    with tally.expect("a history"):
        run_state_machine_as_test(MergeHistories, settings=history_settings(80, 30))
    tally.counts.update(MergeHistories.steps)


FULL: Final[dict[str, Callable[[Tally], None]]] = {
    "crashes": crashes,
    "errors": errors,
    "corruption": corruption,
    "good-banks": good_banks,
    "concurrency": concurrency,
    "interleavings": interleavings,
    "histories": histories,
}
