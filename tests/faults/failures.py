"""Errors of the operating system as a recorder plays them: which call fails, how, and how often."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from calls import Call

Mode = Literal["once", "this call from here on", "every call from here on", "once, after it was done"]
ERRORS: Final[dict[str, Callable[[], BaseException]]] = {
    **{
        name: lambda code=getattr(errno, name): OSError(code, os.strerror(code))  # type: ignore[misc]
        for name in ("ENOSPC", "EIO", "EMFILE", "EACCES")
    },
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
}
_UNDONE: Final = frozenset({"link", "rename", "unlink", "mkdir"})


@dataclass(frozen=True)
class Fault:
    """Which call fails (from which on), how, and how often."""

    number: int
    error: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.error} at call {self.number} ({self.mode})"


class Failure:
    """Plays calls and lets some fail. A close that fails has closed all the same, as on Linux."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._name: str | None = None
        self.call: Call | None = None

    def __call__(self, call: Call, action: Callable[[], Any]) -> Any:
        if not self._hits(call):
            return action()
        self.call = self.call or call
        if call.name == "close" or self._fault.mode == "once, after it was done":
            action()
        raise ERRORS[self._fault.error]()

    def _hits(self, call: Call) -> bool:
        if not call.can_fail or call.number < self._fault.number:
            return False
        if call.number == self._fault.number:
            self._name = call.name
            return True
        mode = self._fault.mode
        return mode == "every call from here on" or (
            mode == "this call from here on" and call.name == self._name
        )


def faults(calls: list[Call], step: int = 1) -> Iterator[Fault]:
    """Every error at every ``step``-th call that can fail, once and from there on. The steps go through the
    errors too, so that a short form sees each of them."""
    found = []
    for call in calls:
        if call.can_fail:
            for error in ERRORS:
                found.append(Fault(call.number, error, "once"))
                if error != "KeyboardInterrupt":
                    found.append(Fault(call.number, error, "this call from here on"))
                    found.append(Fault(call.number, error, "every call from here on"))
                if call.name in _UNDONE and error == "EIO":
                    found.append(Fault(call.number, error, "once, after it was done"))
    yield from found[::step]
