"""Another process at work between any two calls of a reader: it commits, it collects, it repairs.

The other's whole work happens at one call of the reader, once at each call in turn; so nothing depends on
luck.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from calls import Call
from crashes import unsynced
from inspection import reads
from recorder import Recorder
from sample_bank import build_bank, chunk_rows, write_shard
from scenarios import ROWS, SecondVersion
from tally import Tally

from m3build_formats.bank import list_versions, open_bank
from m3build_formats.commit import BankWriter
from m3build_formats.errors import BusyError, UsageError
from m3build_formats.gc import collect
from m3build_formats.history import versions
from m3build_formats.rollback import rollback
from m3build_formats.verify import verify


class Between:
    """Plays calls, and does ``work`` before call ``number``."""

    def __init__(self, number: int, work: Callable[[], object]) -> None:
        self._number = number
        self._work = work
        self._done = False

    def __call__(self, call: Call, action: Callable[[], Any]) -> Any:
        if call.number == self._number and not self._done:
            self._done = True  # the calls of the work itself come through here too
            with contextlib.suppress(BusyError):
                self._work()
        return action()


def _commit(world: Path) -> None:
    SecondVersion().run(world)


def _collect(world: Path) -> None:
    collect(world / "bank", keep=1, grace=0)


def _commit_and_collect(world: Path) -> None:
    _commit(world)
    _collect(world)


def _rewrite(world: Path) -> None:
    with BankWriter(world / "bank") as writer:
        write_shard(writer, chunk_rows(ROWS[1], 1), 1)


OTHERS: Final[dict[str, Callable[[Path], None]]] = {
    "a commit": _commit,
    "a collection": _collect,
    "a commit and a collection": _commit_and_collect,
    "equal files written": _rewrite,
}


def _read(bank: Path) -> str | None:
    with open_bank(bank) as opened:
        for _, read in reads(opened):
            read()
    return None


def _read_pinned(bank: Path) -> str | None:
    try:
        with open_bank(bank, 1) as opened:
            for _, read in reads(opened):
                read()
    except UsageError:
        return "version 1 is said to be gone" if 1 in list_versions(bank) else None
    return None


def _verify(bank: Path) -> str | None:
    problems = verify(bank).problems
    return str(problems[0]) if problems else None


def _verify_quick(bank: Path) -> str | None:
    problems = verify(bank, "quick").problems
    return str(problems[0]) if problems else None


def _list(bank: Path) -> str | None:
    found = [item.version for item in versions(bank)]
    return None if found == sorted(found, reverse=True) and found else f"lists {found}"


def _roll_back(bank: Path) -> str | None:
    try:
        done = rollback(bank, 1, wait_seconds=0)
    except UsageError:
        return "version 1 is said to be gone" if 1 in list_versions(bank) else None
    return None if done.version <= list_versions(bank)[-1] else "its version is not there"


READERS: Final[dict[str, Callable[[Path], str | None]]] = {
    "reading": _read,
    "reading version 1": _read_pinned,
    "verify": _verify,
    "verify quick": _verify_quick,
    "log": _list,
    "a rollback": _roll_back,
}


def interleave(place: Path, tally: Tally, step: int = 1) -> None:
    """Each of the others' works at every ``step``-th call of each reader."""
    start = place / "start"
    start.mkdir()
    with unsynced():
        build_bank(start / "bank", ROWS)
        _commit(start)
        for reader, use in READERS.items():
            with _copy(start, place) as world, Recorder(world) as recorder:
                use(world / "bank")
            for other, work in OTHERS.items():
                for number in range(0, len(recorder.calls), step):
                    case = f"{reader}, and {other} before call {number}"
                    with _copy(start, place) as world, tally.expect(case):
                        with Recorder(world, Between(number, partial(work, world))):
                            wrong = use(world / "bank")
                        if wrong:
                            tally.find(f"{case}: {wrong}")
                        if not verify(world / "bank").ok:
                            tally.find(f"{case}: the bank is damaged")
                    tally.counts[f"interleavings with {other}"] += 1


@contextlib.contextmanager
def _copy(start: Path, place: Path) -> Iterator[Path]:
    world = place / "world"
    shutil.copytree(start, world)
    try:
        yield world
    finally:
        shutil.rmtree(world)
