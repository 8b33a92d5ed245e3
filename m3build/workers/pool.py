"""Hands tasks to worker processes and gives their results in the order of the tasks.

A worker that dies or stalls costs only its own task, which another one does. What a second try looks like is
for the owner of the tasks to say, and when to give up. A worker has stalled when it sent no sign of life for
``SILENT_SECONDS``, or when its work has not told for ``STILL_SECONDS`` that it goes on; seconds in which the
whole machine was suspended do not count. A worker has its next task before it has done the last one, so that
it need not wait while the consumer of results is busy; but the last tasks go to whoever is free. At most
three tasks a worker are under way or waiting to be taken, so neither tasks nor results pile up.

Processes are begun with ``subprocess``. An executor of ``concurrent.futures`` breaks as a whole when one
process dies, and ``multiprocessing`` runs the main module of its caller again in each.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from m3build.workers.frames import Frames, packed
from m3build_formats.errors import ResourceError

SILENT_SECONDS: Final = 30.0
STILL_SECONDS: Final = 600.0
MOST_WORKERS: Final = 8
_LOOK_SECONDS: Final = 1.0
_READ_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 4096
# Deaths in a row before any worker was ready: then no worker can run here.
_MOST_FALSE_STARTS: Final = 3
# Of the tasks a worker has or has done, one lies in its pipe and one waits for the consumer.
_TASKS_A_WORKER: Final = 3
_TASKS_GIVEN: Final = 2
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)

Task = TypeVar("Task")
Result = TypeVar("Result")


def default_workers() -> int:
    """As many as this process may use cores, at most ``MOST_WORKERS``."""
    if hasattr(os, "sched_getaffinity"):
        return min(MOST_WORKERS, len(os.sched_getaffinity(0)))
    return min(MOST_WORKERS, os.cpu_count() or 1)


class Tell(Protocol):
    """By which a job says that its work goes on, and with ``at``, any object, what it does next."""

    def __call__(self, at: object = None) -> None: ...


class Job(Protocol):
    """What workers do. It is pickled; ``begin`` runs in the worker and gives a function from task to
    result."""

    def begin(self) -> AbstractContextManager[Callable[[Any, Tell], Any]]: ...


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended: ``how`` in words, and what it had last said that it was ``at``."""

    how: str
    at: object


@dataclass(slots=True)
class _Entry:
    number: int
    task: Any


@dataclass(slots=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path
    unsent: bytearray
    frames: Frames = field(default_factory=Frames)
    # The first is under way, others lie in its pipe.
    entries: deque[_Entry] = field(default_factory=deque)
    is_ready: bool = False
    at: object = None
    told: int = 0
    silent: float = 0.0
    still: float = 0.0

    def begin_entry(self) -> None:
        """Another task is under way: nothing is known of it yet."""
        self.at, self.silent, self.still = None, 0.0, 0.0


class WorkerPool(Generic[Task, Result]):
    """So many processes that do one job. A context manager: leaving it ends them at once.

    ``scratch`` is a directory for what they print; ``again`` gives the task with which a worker's work is
    tried anew after its death, or raises.
    """

    def __init__(self, job: Job, workers: int, scratch: Path, again: Callable[[Task, Death], Task]) -> None:
        self._job = packed(job)
        self._count = workers
        self._scratch = scratch
        self._again = again
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._begun = 0
        self._false_starts = 0
        self._looked = 0.0
        self._waiting: deque[_Entry] = deque()
        self._ready: dict[int, Result] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in list(self._workers):
            self._end(worker)
        self._selector.close()

    def results(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """The result of each task, in order.

        Raises what a task raised; ResourceError where no worker can be begun; what ``again`` raises.
        """
        numbered = enumerate(tasks)
        given = taken = 0
        more = True
        self._looked = time.monotonic()
        while True:
            while more and given < taken + _TASKS_A_WORKER * self._count:
                following = next(numbered, None)
                if following is None:
                    more = False
                    break
                self._waiting.append(_Entry(*following))
                given += 1
            if taken == given:
                return
            self._hand_out(_TASKS_GIVEN if more else 1)
            self._look(0.0 if taken in self._ready else _LOOK_SECONDS)
            if taken in self._ready:
                yield self._ready.pop(taken)
                taken += 1

    def _hand_out(self, each: int) -> None:
        """Give waiting tasks to workers, so that one has at most ``each``."""
        while self._waiting:
            least = min(self._workers, key=lambda worker: len(worker.entries), default=None)
            if least is None or (least.entries and len(self._workers) < self._count):
                least = self._begin()
            if len(least.entries) >= each:
                return
            entry = self._waiting.popleft()
            if not least.entries:
                least.begin_entry()
            least.entries.append(entry)
            self._send(least, packed(entry.task))

    def _begin(self) -> _Worker:
        self._begun += 1
        log = self._scratch / f"worker-{self._begun}.log"
        environment = {
            **os.environ,
            **_ONE_THREAD,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "m3build.workers.process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env=environment,
                    bufsize=0,
                )
        except OSError as error:
            raise ResourceError(f"a worker process cannot be begun: {error}; try --workers 1") from error
        worker = _Worker(process, log, bytearray())
        self._workers.append(worker)
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._send(worker, self._job)
        return worker

    def _send(self, worker: _Worker, data: bytes) -> None:
        """Queue bytes for a worker; they leave as fast as it takes them."""
        if not worker.unsent:
            self._selector.register(worker.process.stdin, selectors.EVENT_WRITE, worker)  # type: ignore[arg-type]
        worker.unsent += data

    def _look(self, seconds: float) -> None:
        """Wait at most so long for what workers do, and take it in."""
        heard: set[int] = set()
        for key, events in self._selector.select(seconds):
            worker: _Worker = key.data
            if worker not in self._workers:
                continue
            if events & selectors.EVENT_WRITE:
                self._write(worker)
            elif not self._read(worker):
                self._lost(worker, None)
            else:
                heard.add(id(worker))
        now = time.monotonic()
        # A machine that slept, or a consumer that took long, says nothing about workers.
        passed, self._looked = min(now - self._looked, 2 * _LOOK_SECONDS), now
        for worker in [worker for worker in self._workers if worker.entries]:
            worker.silent = 0.0 if id(worker) in heard else worker.silent + passed
            worker.still += passed
            if worker.silent > SILENT_SECONDS:
                self._lost(worker, f"gave no sign of life for {worker.silent:.0f} seconds")
            elif worker.still > STILL_SECONDS:
                self._lost(worker, f"did not get on for {worker.still:.0f} seconds")

    def _write(self, worker: _Worker) -> None:
        stdin = worker.process.stdin
        assert stdin is not None
        try:
            sent = os.write(stdin.fileno(), worker.unsent)
        except BlockingIOError:
            return
        except BrokenPipeError:
            # That it is gone shows when it is read from.
            sent = len(worker.unsent)
        del worker.unsent[:sent]
        if not worker.unsent:
            self._selector.unregister(stdin)

    def _read(self, worker: _Worker) -> bool:
        """Take in what a worker sent; False where it has ended."""
        assert worker.process.stdout is not None
        try:
            data = os.read(worker.process.stdout.fileno(), _READ_BYTES)
        except BlockingIOError:
            return True
        for kind, *content in worker.frames.feed(data):
            if kind == "ready":
                worker.is_ready, worker.still, self._false_starts = True, 0.0, 0
            elif kind == "at":
                worker.at, worker.still = content[0], 0.0
            elif kind == "beat":
                if content[0] != worker.told:
                    worker.told, worker.still = content[0], 0.0
            elif kind == "failed":
                error, trace = content
                error.add_note(f"In a worker process:\n{trace}")
                raise error
            elif worker.entries:
                self._ready[worker.entries.popleft().number] = content[0]
                worker.begin_entry()
        return bool(data)

    def _lost(self, worker: _Worker, stalled: str | None) -> None:
        entries, was_ready = worker.entries, worker.is_ready
        code = self._end(worker, patient=stalled is None)
        said = _last_line(worker.log)
        how = stalled or _ended(code)
        if not was_ready:
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS or not entries:
                raise ResourceError(f"worker processes do not start: the last {how}{said}; try --workers 1")
        elif entries:
            entries[0].task = self._again(entries[0].task, Death(f"{how}{said}", worker.at))
        self._waiting.extendleft(reversed(entries))

    def _end(self, worker: _Worker, patient: bool = False) -> int:
        """End a process if it has not; its exit code."""
        process = worker.process
        if patient:
            # It closed its pipe: give it the moment that it needs to end, for the exit code tells why.
            with suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        # A stopped process takes SIGKILL too.
        process.kill()
        self._workers.remove(worker)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(KeyError):
                self._selector.unregister(stream)
            stream.close()
        return process.wait()


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _last_line(log: Path) -> str:
    """The last line of what a worker printed, to be put after how it ended."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return f" ({lines[-1].strip()})" if lines else ""
