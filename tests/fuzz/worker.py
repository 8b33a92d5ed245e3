"""The process that feeds inputs to a target. `run.py` starts it, watches it and reads what it was doing when
it ended.

    python worker.py TARGET ENGINE SEED PROCESSOR_SECONDS EXECUTIONS NOTES

NOTES is a file of `NOTES_BYTES`: executions, accepted inputs, and the input that is being read. A second of
processor time is spent in starting; the rest until PROCESSOR_SECONDS or EXECUTIONS (0: no limit) in reading.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import paths  # noqa: F401 - makes what targets import found

NOTES_HEADER = struct.Struct("<QQQ")
NOTES_BYTES = 1 << 20
SECONDS_AN_INPUT = 10
ADDRESS_SPACE = 1 << 30
INSTRUMENTED = ["m3build", "m3build_formats"]


class Notes:
    """What survives a crash: counts and the current input in a mapped file."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), NOTES_BYTES)
        self.executions = self.accepted = 0

    def begin(self, data: bytes) -> None:
        """Notes an input before it is read."""
        self.executions += 1
        kept = data[: NOTES_BYTES - NOTES_HEADER.size]
        self._map[NOTES_HEADER.size : NOTES_HEADER.size + len(kept)] = kept
        self._map[: NOTES_HEADER.size] = NOTES_HEADER.pack(self.executions, self.accepted, len(kept))

    def end(self, accepted: bool) -> None:
        """Counts an input that was accepted."""
        self.accepted += accepted


def main() -> None:
    name, engine, seed, seconds, executions, path = sys.argv[1:]
    if engine == "atheris":
        atheris: Any = import_module("atheris")
        with atheris.instrument_imports(include=INSTRUMENTED):
            import targets
    else:
        import targets
    from mutate import LARGEST, mutate

    # An interrupt from outside must not look like an exception of the target.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    target, notes = targets.TARGETS[name], Notes(path)
    seeds = target.seeds()
    for data in seeds:
        target.run(data)
    _limit_memory()
    most = int(executions)
    # Lines that are counted run four to five times as slowly.
    seconds_an_input = SECONDS_AN_INPUT * (4 if engine == "atheris" else 1)

    def over() -> bool:
        return time.process_time() >= float(seconds) or bool(most and notes.executions >= most)

    def feed(data: bytes) -> None:
        notes.begin(data)
        signal.setitimer(signal.ITIMER_PROF, seconds_an_input)
        notes.end(target.run(data))
        signal.setitimer(signal.ITIMER_PROF, 0)
        if over():
            # Atheris has no other way to stop at a time of the processor.
            os._exit(0)

    if engine == "atheris":
        _with_atheris(feed, seeds, int(seed), LARGEST, mutate)
    chance = random.Random(int(seed))
    while True:
        feed(mutate(chance.choice(seeds), chance, seeds))


def _with_atheris(feed: Any, seeds: list[bytes], seed: int, largest: int, mutate: Any) -> None:
    """Coverage of this project's Python chooses which inputs to go on from."""
    atheris: Any = import_module("atheris")

    def spoil(data: bytes, size: int, number: int) -> bytes:
        chance = random.Random(number)
        if chance.random() < 0.3:
            return bytes(atheris.Mutate(data, size))
        try:
            return bytes(mutate(data, chance, seeds)[:size])
        except BaseException:  # noqa: BLE001 - whatever it is
            # Atheris would end without a word.
            traceback.print_exc()
            os._exit(3)

    corpus = tempfile.mkdtemp()
    for number, data in enumerate(seeds):
        Path(corpus, str(number)).write_bytes(data)
    # Crashes are left to the system, so that `run.py` sees the signal.
    options = ["-handle_segv=0", "-handle_abrt=0", "-handle_bus=0", "-handle_fpe=0", "-handle_ill=0"]
    options += [
        "-handle_int=0",
        f"-artifact_prefix={corpus}/",
        # Of the clock: with 0 atheris ends at an input that a busy machine takes a second for. Time of the
        # processor is looked after above, and by `run.py` whether there is any.
        "-timeout=1000000",
        "-rss_limit_mb=0",
        "-detect_leaks=0",
        "-verbosity=0",
        f"-max_len={largest}",
    ]
    atheris.Setup(["worker", f"-seed={seed}", *options, corpus], feed, custom_mutator=spoil)
    atheris.Fuzz()


def _limit_memory() -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
