"""Passes progress on and keeps what a build has to report at its end: time and amount by stage, and every
note.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from m3build.pipeline.freed_memory import give_back_freed_memory
from m3build.pipeline.result import StageTime
from m3build.progress import Progress, Stage


class Watch:
    """A Progress that remembers."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._began = time.perf_counter()
        self.stages: list[StageTime] = []
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Stage]:
        """A stage, timed and counted."""
        began = time.perf_counter()
        with self._inner.stage(name, total, unit) as inner:
            counted = _Counted(inner)
            yield counted
        give_back_freed_memory()
        self.stages.append(StageTime(name, time.perf_counter() - began, counted.done, unit))

    def note(self, message: str) -> None:
        """A remark, passed on and kept."""
        self.notes.append(message)
        self._inner.note(message)

    def rejected(self, count: int) -> None:
        """Passed on."""
        self._inner.rejected(count)

    @property
    def seconds(self) -> float:
        """Seconds since the build began."""
        return time.perf_counter() - self._began


class _Counted:
    def __init__(self, inner: Stage) -> None:
        self._inner = inner
        self.done = 0

    def advance(self, amount: int) -> None:
        """``amount`` more units are done."""
        self.done += amount
        self._inner.advance(amount)
