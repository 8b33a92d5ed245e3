"""Errors at every call of a writer, and short writes.

The writer must say so with an expected error and leave the old version, or the new one, whole; the next
writer goes on and leaves nothing temporary.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from calls import Call
from crashes import fixed_time, unsynced
from failures import ERRORS, Failure, Fault, faults
from inspection import TornError
from recorder import Recorder
from sample_bank import temporary_files
from scenarios import Scenario, WriterScenario
from tally import Tally

from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import BusyError, M3Error, ResourceError


class WriteErrors:
    """Errors while a scenario runs. ``place`` is a directory for what is made and thrown away."""

    def __init__(self, scenario: Scenario, place: Path, tally: Tally) -> None:
        self.scenario = scenario
        self.place = place
        self.tally = tally
        self._worlds = 0
        self.start = place / "start"
        self.start.mkdir(parents=True)
        with fixed_time(), unsynced():
            scenario.prepare(self.start)
            with self._world() as world:
                old = scenario.judge(world)
                with Recorder(world) as recorder:
                    new = scenario.run(world)
        self.calls = recorder.calls
        self.old, self.new = old.sha256 if old else None, new.sha256

    def errors(self, step: int = 1) -> None:
        """Each fault in a run of its own; then the next writer."""
        for fault in faults(self.calls, step):
            case = f"{self.scenario.name}: {fault}"
            with self._world() as world, self.tally.expect(case), fixed_time():
                failure = Failure(fault)
                made: str | None = None
                with Recorder(world, failure) as recorder:
                    try:
                        made = self.scenario.run(world).sha256
                    except BaseException as error:  # noqa: BLE001 (judged, not swallowed)
                        self._judge_error(error, fault, failure.call, case)
                if recorder.left_open and fault.error != "KeyboardInterrupt":
                    self.tally.find(f"{case}: {failure.call} left {recorder.left_open[0]} open")
                self.tally.counts["errors while writing"] += 1
                self._go_on(world, made)

    def final_syncs(self) -> None:
        """Lets every fsync fail once; the writer that met it must commit nothing more, though all later
        ones would succeed."""
        scenario = self.scenario
        assert isinstance(scenario, WriterScenario)
        for call in [call for call in self.calls if call.name == "fsync"]:
            case = f"{self.scenario.name}: a failed fsync, {call}"
            failure = Failure(Fault(call.number, "EIO", "once"))
            with self._world() as world, self.tally.expect(case), fixed_time():
                with Recorder(world, failure):
                    try:
                        with BankWriter(world / self.scenario.bank) as writer:
                            self._insist(scenario, writer)
                    except ResourceError:
                        pass  # it failed before there was a writer to insist with
                self.tally.counts["failed fsyncs"] += 1
                self._go_on(world, None)

    def second_attempts(self, step: int = 1) -> None:
        """After an error that is not an fsync's the same writer may go on, and then does it well."""
        scenario = self.scenario
        assert isinstance(scenario, WriterScenario)
        for call in [call for call in self.calls if call.name != "fsync" and call.can_fail][::step]:
            case = f"{self.scenario.name}: {call} failed, and the same writer tried again"
            with self._world() as world, self.tally.expect(case), fixed_time():
                made = None
                with Recorder(world, Failure(Fault(call.number, "EIO", "once"))):
                    try:
                        with BankWriter(world / self.scenario.bank) as writer:
                            try:
                                made = scenario.work(writer).sha256
                            except M3Error:
                                made = scenario.work(writer).sha256
                                self.tally.counts["second attempts"] += 1
                    except ResourceError:
                        pass  # before there was a writer, or in taking leave of it
                self._go_on(world, made)

    def short_writes(self, times: int) -> None:
        """Reads and writes that move fewer bytes than asked for, as POSIX allows, change nothing."""
        for seed in range(times):
            with self._world() as world, self.tally.expect(f"{self.scenario.name}: short, seed {seed}"):
                with fixed_time(), Recorder(world, short=Random(seed)):
                    made = self.scenario.run(world).sha256
                if made != self.new:
                    raise TornError("another version than with whole writes")
                self.tally.counts["runs with short reads and writes"] += 1
                with fixed_time():
                    self._go_on(world, made)

    def _insist(self, scenario: WriterScenario, writer: BankWriter) -> None:
        try:
            scenario.work(writer)
        except ResourceError:
            before = list_versions(writer.path)
            for _ in range(2):
                try:
                    scenario.work(writer)
                except ResourceError:
                    continue
                raise TornError("the writer committed after a failed fsync") from None
            base = read_manifest(writer.path) if before else None
            if base is not None:
                try:
                    writer.commit(base.contents, base)
                except ResourceError:
                    pass
                else:
                    raise TornError("the writer committed after a failed fsync") from None
            if list_versions(writer.path) != before:
                raise TornError("a version appeared after a failed fsync") from None
        else:
            raise TornError("a failed fsync was not told")

    def _judge_error(self, error: BaseException, fault: Fault, call: Call | None, case: str) -> None:
        if fault.error in ("MemoryError", "KeyboardInterrupt"):
            expected = isinstance(error, ERRORS[fault.error]().__class__)
        elif fault.error == "EACCES" and call is not None and call.name == "flock":
            # On some network file systems a lock that another holds is EACCES.
            expected = isinstance(error, (BusyError, ResourceError))
        else:
            expected = isinstance(error, ResourceError)
        if not expected:
            self.tally.find(f"{case}: {call} raised {type(error).__name__}: {error}")
        self.tally.counts[f"raised {type(error).__name__}"] += 1

    def _go_on(self, world: Path, made: str | None) -> None:
        """The bank is whole at an allowed version, and the next writer leaves it whole and tidy."""
        with unsynced():
            found = self.scenario.judge(world)
            digest = found.sha256 if found else None
            if digest not in ((self.old, self.new) if made is None else (made,)):
                raise TornError("the current version is not one that was expected")
            again = self.scenario.run(world)
            whole = self.scenario.judge(world)
            if whole is None or whole.sha256 != again.sha256:
                raise TornError("the next writer's version is not the current one")
            if left := temporary_files(world):
                raise TornError(f"the next writer left {left[0].name}")

    @contextmanager
    def _world(self) -> Iterator[Path]:
        self._worlds += 1
        world = self.place / f"world-{self._worlds}"
        shutil.copytree(self.start, world)
        try:
            yield world
        finally:
            shutil.rmtree(world)
