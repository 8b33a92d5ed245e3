"""A worker process: ``python -m m3build.workers.process``, begun by ``pool`` and of no use by itself.

It reads a job, then tasks, from standard input and answers on what was standard output; anything that a
library prints goes to standard error. Two threads beside the work keep it honest: one sends a beat every
second, by which the build knows that it is alive, the other notices when the build is gone, and ends it.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from typing import Any, Final

from m3build.own_process import set_up_process
from m3build.workers.frames import Frames, packed

BEAT_SECONDS: Final = 1.0
_READ_BYTES: Final = 1 << 16


class _Worker:
    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._told = 0
        self.tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, *message: object) -> None:
        """Answer the build. One that is gone reads nothing: then there is nothing left to do."""
        view = memoryview(packed(message))
        with self._lock:
            try:
                while view:
                    view = view[os.write(self._answers, view) :]
            except BrokenPipeError:
                os._exit(0)

    def tell(self, at: object = None) -> None:
        """The work goes on; ``at`` is what it does next."""
        self._told += 1
        if at is not None:
            self.send("at", at)

    def listen(self) -> None:
        """Take in what the build sends, until its end of the pipe is closed."""
        frames = Frames()
        while data := os.read(0, _READ_BYTES):
            for message in frames.feed(data):
                self.tasks.put(message)
        os._exit(0)

    def beat(self) -> None:
        """Say over and over that this process runs, and how often the work told that it goes on."""
        while True:
            self.send("beat", self._told)
            time.sleep(BEAT_SECONDS)

    def work(self) -> None:
        """Do the job, task after task."""
        threading.Thread(target=self.listen, daemon=True).start()
        threading.Thread(target=self.beat, daemon=True).start()
        with self.tasks.get().begin() as run:
            self.send("ready")
            while True:
                task = self.tasks.get()
                try:
                    result = run(task, self.tell)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is for the build to say
                    self._failed(error)
                else:
                    self.send("done", result)

    def _failed(self, error: Exception) -> None:
        text = traceback.format_exc()
        try:
            self.send("failed", error, text)
        except (AttributeError, TypeError, ValueError, RecursionError):
            # An exception that cannot be sent as it is.
            self.send("failed", RuntimeError(repr(error)), text)


def main() -> None:
    """Work until the build says no more, or is gone."""
    # Ctrl-C reaches every process of a terminal; what is to happen is for the build to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_process()
    answers = os.dup(1)
    os.dup2(2, 1)
    _Worker(answers).work()


if __name__ == "__main__":
    main()
