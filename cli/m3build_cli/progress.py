"""Progress on standard error: for people a bar with rate and time left on a terminal, else one line every few
seconds; for programs JSON lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Never, TextIO

from m3build.progress import Progress, Silent, Stage

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_OBJECTS = 1.0
BYTE_UNITS = {"bytes": "B"}


class TerminalProgress:
    """A tqdm bar a stage; notes go above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Stage]:
        """A bar with count, rate and time left; it stays on the screen when the stage is done."""
        from tqdm import tqdm

        in_bytes = unit in BYTE_UNITS
        with tqdm(
            total=total,
            desc=f"{name:<12}",
            unit=BYTE_UNITS.get(unit, f" {unit}"),
            unit_scale=in_bytes,
            unit_divisor=1000,
            file=self._stream,
            dynamic_ncols=True,
            mininterval=0.2,
        ) as bar:
            yield _Bar(bar)

    def rejected(self, count: int) -> None:
        """The summary has them."""

    def note(self, message: str) -> None:
        """A line above the bar."""
        from tqdm import tqdm

        tqdm.write(f"note: {message}", file=self._stream)


class _Bar:
    def __init__(self, bar: tqdm[Never]) -> None:
        self._bar = bar

    def advance(self, amount: int) -> None:
        """``amount`` more units are done."""
        self._bar.update(amount)


class LineProgress:
    """A line when a stage begins, every few seconds while it runs, and when it ends: for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Stage]:
        """A stage that prints lines."""
        stage = _Lines(self._stream, name, total, unit)
        yield stage
        stage.say(final=True)

    def rejected(self, count: int) -> None:
        """The summary has them."""

    def note(self, message: str) -> None:
        """One line."""
        print(f"note: {message}", file=self._stream, flush=True)


class _Lines:
    def __init__(self, stream: TextIO, name: str, total: int | None, unit: str) -> None:
        self._stream, self._name, self._total, self._unit = stream, name, total, unit
        self._done = 0
        self._began = self._said = time.monotonic()

    def advance(self, amount: int) -> None:
        """``amount`` more units are done; says so if it has been quiet for a while."""
        self._done += amount
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self.say()

    def say(self, final: bool = False) -> None:
        """One line with count, rate and time left."""
        now = time.monotonic()
        self._said = now
        rate = self._done / max(now - self._began, 1e-9)
        of = f" of {self._total:,}" if self._total else ""
        left = ""
        if self._total and rate > 0 and not final:
            left = f", about {(self._total - self._done) / rate:,.0f} s left"
        ended = ", done" if final else ""
        print(
            f"{self._name}: {self._done:,}{of} {self._unit}, {rate:,.0f}/s{left}{ended}",
            file=self._stream,
            flush=True,
        )


class JsonProgress:
    """One JSON object a line, for schedulers: ``event`` is "stage" (when a stage begins, every second while
    it runs, and when it ends) or "note".

    A stage has ``stage``, ``state`` ("begun", "running", "done"), ``done``, ``total`` (or null), ``unit``,
    ``rate`` in units a second, ``eta`` in seconds (or null), ``rejects`` so far, and ``seconds`` since the
    command began.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self.rejects = 0

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Stage]:
        """A stage that says how far it is."""
        stage = _JsonStage(self, name, total, unit)
        stage.say("begun")
        yield stage
        stage.say("done")

    def note(self, message: str) -> None:
        """One object."""
        self.say({"event": "note", "message": message})

    def rejected(self, count: int) -> None:
        """Taken down for the next line."""
        self.rejects = count

    def say(self, fields: dict[str, object]) -> None:
        """One line, at once."""
        line = {**fields, "rejects": self.rejects, "seconds": round(time.monotonic() - self._began, 3)}
        print(json.dumps(line), file=self._stream, flush=True)


class _JsonStage:
    def __init__(self, owner: JsonProgress, name: str, total: int | None, unit: str) -> None:
        self._owner, self._name, self._total, self._unit = owner, name, total, unit
        self._done = 0
        self._began = self._said = time.monotonic()

    def advance(self, amount: int) -> None:
        """``amount`` more units are done; says so once a second."""
        self._done += amount
        if time.monotonic() - self._said >= SECONDS_BETWEEN_OBJECTS:
            self.say("running")

    def say(self, state: str) -> None:
        """One line."""
        self._said = time.monotonic()
        rate = self._done / max(self._said - self._began, 1e-9)
        left = None
        if self._total is not None and rate > 0:
            left = round((self._total - self._done) / rate, 3)
        self._owner.say(
            {
                "event": "stage",
                "stage": self._name,
                "state": state,
                "done": self._done,
                "total": self._total,
                "unit": self._unit,
                "rate": round(rate, 3),
                "eta": 0.0 if state == "done" else left,
            }
        )


class NotesOnly(Silent):
    """No progress, and notes all the same: they are about what comes out, such as traces that a take-down
    leaves in a codec."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, message: str) -> None:
        """One line."""
        print(f"note: {message}", file=self._stream, flush=True)


def progress_for(choice: str) -> Progress:
    """``auto`` (a bar on a terminal, lines elsewhere), ``bar``, ``lines``, ``json`` or ``none``: notes
    alone."""
    if choice == "json":
        return JsonProgress(sys.stderr)
    if choice == "none":
        return NotesOnly(sys.stderr)
    if choice == "bar" or (choice == "auto" and sys.stderr.isatty()):
        return TerminalProgress(sys.stderr)
    return LineProgress(sys.stderr)
