"""Crashes at every file-system call of a commit: of the process, and of the machine.

A process that dies leaves what it did so far, and none of its handlers runs. A machine that loses power
leaves any of the trees that `disk_model` allows. From each the bank must open whole, at the old version or
the new one, and the next writer must go on. A version whose commit returned must be there after any power
loss, also when the commit came after the crash of another writer whose work nothing had forced to disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

from calls import Call
from disk_model import Disk, State, Tree, after_power_loss, lay_out, tree_at, tree_key, tree_now
from inspection import TornError
from recorder import Recorder
from sample_bank import temporary_files
from scenarios import Scenario
from tally import Tally

from m3build_formats.commit import BankWriter

SEED: Final = 20240701
LAST_CALLS: Final = 9
"""Calls that make a manifest and what stands around it: the short form leaves none of them out."""


class KilledError(BaseException):
    """The process is dead. No handler of the code under test names it, and no call is made after it."""


class Death:
    """Plays calls up to one and dies there, before or after it is done."""

    def __init__(self, number: int, *, after: bool) -> None:
        self._number = number
        self._after = after
        self.dead = False

    def __call__(self, call: Call, action: Callable[[], Any]) -> Any:
        if not self.dead and call.number != self._number:
            return action()
        if not self.dead and self._after:
            with contextlib.suppress(OSError):
                action()
        self.dead = True
        raise KilledError


@dataclass(frozen=True)
class Recording:
    """A run without faults: its calls, the disk before it and after each call that changes it, and the
    digests of the versions before and after."""

    calls: list[Call]
    states: list[tuple[str, State]]
    old: str | None
    new: str


def _do_not_sync(descriptor: int) -> None:
    """Instead of fsync."""


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Without real fsyncs, for what is thrown away at once."""
    with mock.patch.object(os, "fsync", _do_not_sync):
        yield


@contextlib.contextmanager
def fixed_time() -> Iterator[None]:
    """Versions made within have the same digest however often they are made."""
    with mock.patch.dict(os.environ, {"SOURCE_DATE_EPOCH": "1700000000"}):
        yield


class CrashCases:
    """The cases of one scenario. ``place`` is a directory for what is made and thrown away. An fsync for
    which ``lies`` is true says that all is well and does nothing: the cases must then find something."""

    def __init__(
        self,
        scenario: Scenario,
        place: Path,
        tally: Tally,
        lies: Callable[[Call], bool] = lambda call: False,
    ) -> None:
        self._lies = lies
        self.scenario = scenario
        self.place = place
        self.tally = tally
        self._worlds = 0
        with fixed_time(), unsynced():
            self.start = place / "start"
            self.start.mkdir(parents=True)
            scenario.prepare(self.start)
            self.recording = self._record()

    def process_deaths(self, step: int = 1) -> None:
        """Dies before and after every call (every ``step``-th)."""
        for call in self.recording.calls[::step]:
            for after in (False, True):
                case = f"{self.scenario.name}: killed {'after' if after else 'before'} {call}"
                with self._world() as world:
                    disk = Disk(world)
                    self._run_to_death(world, disk, call.number, after=after, case=case)
                    if tree_at(world) != tree_now(disk.state()):
                        self.tally.find(f"{case}: the disk is not what the calls seen make of it")
                    self.tally.counts["deaths of the process"] += 1
                    self._survive(world, case)

    def power_losses(self, most: int, step: int = 1) -> None:
        """Loses power before the first call that changes the disk and after every ``step``-th and each of the
        last ones, with up to ``most`` outcomes each."""
        random, seen, states = Random(SEED), set[int](), self.recording.states
        last = len(states) - LAST_CALLS
        for words, state in [item for n, item in enumerate(states) if n % step == 0 or n >= last]:
            for number, tree in enumerate(after_power_loss(state, most, random)):
                key = tree_key(tree)
                if key not in seen:
                    seen.add(key)
                    self._after_loss(tree, f"{self.scenario.name}: power lost {words}, outcome {number}")

    def losses_after_return(self, most: int) -> None:
        """Loses power when the commit has returned: then the version must stay."""
        for tree in after_power_loss(self.recording.states[-1][1], most, Random(SEED)):
            case = f"{self.scenario.name}: power lost after the commit returned"
            self._after_loss(tree, case, {self.recording.new})

    def second_writers(self, most: int, step: int = 1, between: int = 0) -> None:
        """Dies after every ``step``-th call that changes the disk, lets another writer look and then finish,
        and loses power then, with up to ``most`` outcomes: the version that it saw, or made, must stay. At
        ``between`` moments, drawn at random while the second writer works, it must be one of the two."""
        random = Random(SEED)
        for call in [call for call in self.recording.calls if call.changes][::step]:
            case = f"{self.scenario.name}: killed after {call}"
            with self._world() as world:
                disk = Disk(world)
                self._run_to_death(world, disk, call.number, after=True, case=case)
                states: list[State] = []

                def play(
                    call: Call, action: Callable[[], Any], disk: Disk = disk, states: list[State] = states
                ) -> Any:
                    states.append(disk.state())
                    return action()

                with fixed_time(), Recorder(world, play, disk):
                    with BankWriter(world / self.scenario.bank):
                        seen = self.scenario.judge(world)
                    states.clear()
                    committed = self.scenario.run(world)
                self.tally.counts["commits by a second writer"] += 1
            before = seen.sha256 if seen else None
            for tree in after_power_loss(states[0], most if before == self.recording.new else 1, random):
                self._after_loss(tree, f"{case}, seen by another, power lost", {before})
            for state in random.sample(states, min(between, len(states))):
                for tree in after_power_loss(state, 2, random):
                    words = f"{case}, power lost while another worked"
                    self._after_loss(tree, words, {before, committed.sha256})
            for tree in after_power_loss(disk.state(), most, random):
                self._after_loss(tree, f"{case}, committed by another, power lost", {committed.sha256})

    def _record(self) -> Recording:
        with self._world() as world:
            old = self.scenario.judge(world)
            disk = Disk(world)
            states: list[tuple[str, State]] = [("before the first call", disk.state())]

            def play(call: Call, action: Callable[[], Any]) -> Any:
                try:
                    return None if call.name == "fsync" and self._lies(call) else action()
                finally:
                    if call.changes:
                        states.append((f"after {call}", disk.state()))

            with Recorder(world, play, disk) as recorder:
                new = self.scenario.run(world)
            for stray in recorder.strays:
                self.tally.find(f"{self.scenario.name}: went to the disk by another road: {stray}")
            for path in recorder.left_open:
                self.tally.find(f"{self.scenario.name}: left {path} open")
        self.tally.counts["calls"] += len(recorder.calls)
        self.tally.counts["calls that change the disk"] += len(states) - 1
        return Recording(recorder.calls, states, old.sha256 if old else None, new.sha256)

    def _run_to_death(self, world: Path, disk: Disk, number: int, *, after: bool, case: str) -> None:
        death = Death(number, after=after)
        with fixed_time(), Recorder(world, death, disk):
            try:
                self.scenario.run(world)
            except KilledError:
                return
        self.tally.find(f"{case}: " + ("death was caught" if death.dead else "the call was not made"))

    def _after_loss(self, tree: Tree, case: str, allowed: set[str | None] | None = None) -> None:
        world = self._new_place()
        lay_out(tree, world)
        self.tally.counts["trees after a power loss"] += 1
        self._survive(world, case, allowed)
        shutil.rmtree(world)

    def _survive(self, world: Path, case: str, allowed: set[str | None] | None = None) -> None:
        """The bank opens whole at an allowed version (the old or the new one, where nothing else is said),
        and the next writer goes on from there."""
        with self.tally.expect(case), fixed_time(), unsynced():
            found = self.scenario.judge(world)
            digest = found.sha256 if found else None
            if digest not in (allowed or {self.recording.old, self.recording.new}):
                raise TornError(f"version {found.version if found else None} is current, which cannot be")
            self.tally.counts[
                "opened at the new version" if digest != self.recording.old else "opened at the old version"
            ] += 1
            made = self.scenario.run(world)
            again = self.scenario.judge(world)
            if again is None or again.sha256 != made.sha256:
                raise TornError("the next writer's version is not the current one")
            if left := temporary_files(world):
                raise TornError(f"the next writer left {left[0].name}")

    @contextlib.contextmanager
    def _world(self) -> Iterator[Path]:
        world = self._new_place()
        shutil.copytree(self.start, world)
        try:
            yield world
        finally:
            shutil.rmtree(world)

    def _new_place(self) -> Path:
        self._worlds += 1
        return self.place / f"world-{self._worlds}"
