"""The command line in processes of its own that start in milliseconds: forked from one that has imported
torch and all that a build imports, but has computed nothing.

That one is multiprocessing's fork server, started at the first use. A process here is a real one: it can be
killed at any moment, has its own signals, working directory, environment and locale, and ends with the exit
code of the command.
"""

from __future__ import annotations

import locale
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PLACES = [Path(__file__).resolve().parent, _ROOT, _ROOT / "formats", _ROOT / "cli"]


@dataclass(frozen=True)
class Surroundings:
    """Where and how a command runs: what must not show in a bank."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    locale: str = "C"
    threads: int = 1
    # Seconds of the processor after which the system ends the process on the spot.
    dies_after: float | None = None


class Command:
    """A command that runs; its outputs go to files."""

    def __init__(self, arguments: list[str], around: Surroundings, place: Path) -> None:
        self._out, self._err, self._spent = place / "stdout", place / "stderr", place / "spent"
        self._process: Any = _server().Process(
            target=_child, args=(arguments, around, str(self._out), str(self._err), str(self._spent))
        )
        self._process.start()

    def send(self, number: int) -> None:
        """Send a signal to the process, which may be gone."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait(self) -> int:
        """The exit code, or minus the number of the signal that ended it."""
        self._process.join()
        return int(self._process.exitcode)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return bool(self._process.is_alive())

    @property
    def errors(self) -> str:
        """What is on its standard error by now."""
        return self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    @property
    def output(self) -> str:
        """What is on its standard output by now."""
        return self._out.read_text(encoding="utf-8") if self._out.exists() else ""

    @property
    def spent(self) -> float:
        """Seconds of the processor that it took, once it has ended by itself."""
        return float(self._spent.read_text(encoding="ascii"))


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm_imports"])
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONHASHSEED")}
    os.environ.update(
        PYTHONPATH=os.pathsep.join(map(str, _PLACES)), OMP_NUM_THREADS="1", PYTHONHASHSEED="random"
    )
    try:
        # The server takes the environment and imports when its first child is asked for.
        first = context.Process(target=_nothing)
        first.start()
        first.join()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _nothing() -> None:
    """A first child."""


def _child(arguments: list[str], around: Surroundings, out: str, err: str, spent: str) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - they end with the process
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    os.chdir(around.directory)
    os.environ.update(around.environment)
    time.tzset()
    locale.setlocale(locale.LC_ALL, around.locale)
    # A shell starts background jobs with SIGINT ignored, and tests may run in one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from m3build_cli.main import run

    torch.set_num_threads(around.threads)
    began = time.process_time()
    if around.dies_after is not None:
        # Like SIGKILL it runs nothing of the process. The processor's time is the same on a busy machine.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, max(around.dies_after, 1e-3))
    try:
        run(arguments)
    finally:
        Path(spent).write_text(str(time.process_time() - began), encoding="ascii")
