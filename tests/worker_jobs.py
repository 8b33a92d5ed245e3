"""Jobs for worker processes under test. Workers import this module by its name."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3build.workers import Tell
from m3build_formats.errors import InputError


@dataclass(frozen=True)
class Order:
    """A task: what to do, with what, and how often it was begun before."""

    what: str
    value: Any = None
    tries: int = 0


@dataclass(frozen=True)
class Acts:
    """Does as it is told."""

    place: Path

    @contextmanager
    def begin(self) -> Iterator[Callable[[Order, Tell], Any]]:
        (self.place / str(os.getpid())).touch()
        yield _act


@dataclass(frozen=True)
class NeverBegins:
    """Ends its process before it is ready."""

    @contextmanager
    def begin(self) -> Iterator[Callable[[Order, Tell], Any]]:
        sys.exit("no such thing as a model")
        yield _act


def _act(order: Order, tell: Tell) -> Any:
    if order.what in ("die", "stop", "freeze") and order.tries:
        return f"{order.what}, again"
    if order.what == "die":
        tell(("page", order.value))
        print("about to end", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if order.what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if order.what == "freeze":
        time.sleep(3600)
    if order.what == "wait":
        for _ in range(int(order.value * 10)):
            time.sleep(0.1)
            tell()
    if order.what == "meet":
        mine, other = map(Path, order.value)
        mine.touch()
        for _ in range(300):
            if other.exists():
                return mine.name
            time.sleep(0.1)
            tell()
        raise InputError(f"{other.name} never came")
    if order.what == "raise":
        raise InputError(f"nothing in {order.value}")
    if order.what == "print":
        print("not for the build")
    return order.value
