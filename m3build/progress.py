"""How a long job tells what it is doing, without knowing who listens: a terminal, a log, or nobody."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Stage(Protocol):
    """One stage under way."""

    def advance(self, amount: int) -> None:
        """``amount`` more units are done."""
        ...


class Progress(Protocol):
    """Listens to a job: one stage after the other, and remarks between them."""

    def stage(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Stage]:
        """A stage begins: ``name`` for people, ``total`` units (None where unknown) of ``unit`` ("bytes",
        "chunks", "references").
        """
        ...

    def note(self, message: str) -> None:
        """Something worth a line: a warning or a choice that was made."""
        ...

    def rejected(self, count: int) -> None:
        """``count`` records of the input are rejected by now."""
        ...


class _SilentStage:
    def advance(self, amount: int) -> None:
        """Nobody listens."""


class Silent:
    """The progress of library calls unless the caller brings another: says nothing."""

    def stage(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Stage]:
        """A stage that nobody watches."""
        return nullcontext(_SilentStage())

    def note(self, message: str) -> None:
        """Dropped."""

    def rejected(self, count: int) -> None:
        """Dropped."""
