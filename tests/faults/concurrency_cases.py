"""Many processes at one bank: writers that take turns, readers that never wait, writers that are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

from crashes import SEED
from inspection import TornError, whole_version
from sample_bank import build_bank, temporary_files
from tally import Tally
from workers import PATIENCE, ROWS, collect_often, commit_files_forever, commit_often, fork, read_often

from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import Sink
from m3build_formats.errors import BusyError, CorruptError


class ConcurrencyCases:
    """``place`` is a directory for banks."""

    def __init__(self, place: Path, tally: Tally) -> None:
        self.place = place
        self.tally = tally

    def writers(self, processes: int, commits: int, readers: int = 2) -> None:
        """Every commit there once, in a row, each made from the one before; readers saw whole versions."""
        bank = self._bank("writers")
        busy = self._run(bank, processes, commits, readers, [])
        expected = [f"{worker}-{number}" for worker in range(processes) for number in range(commits)]
        versions = [read_manifest(bank, number) for number in list_versions(bank)]
        if [item.version for item in versions] != list(range(1, len(expected) + 2)):
            self.tally.find(f"{len(versions)} versions after {len(expected)} commits, or numbers left out")
        if sorted(item.operation for item in versions[1:]) != sorted(expected):
            self.tally.find("a commit is lost or there twice")
        for before, after in pairwise(versions):
            base = after.base
            if base is None or (base.version, base.sha256) != (before.version, before.sha256):
                self.tally.find(f"version {after.version} was not made from version {before.version}")
            if len(after.sources) != len(before.sources) + 1:
                self.tally.find(f"version {after.version} lost what version {before.version} added")
        with self.tally.expect("after all commits"):
            whole_version(bank)
        self.tally.counts["commits"] += len(versions) - 1
        self.tally.counts["told to try again"] += busy
        self._tidy(bank)

    def writers_and_collector(self, processes: int, commits: int, readers: int = 2) -> None:
        """The same while versions are collected as fast as they appear."""
        bank = self._bank("collected")
        self._run(bank, processes, commits, readers, [collect_often])
        current = whole_version(bank)
        assert current is not None
        added = {name for name in current.sources if name != "arguments"}
        expected = {f"{worker}-{number}" for worker in range(processes) for number in range(commits)}
        if added != expected or current.version != len(expected) + 1:
            self.tally.find(f"version {current.version} has {len(added)} of {len(expected)} commits")
        self.tally.counts["commits beside a collector"] += current.version - 1
        self._tidy(bank)

    def threads(self, threads: int, commits: int) -> None:
        """The lock holds between threads of one process too."""
        bank = self._bank("threads")
        running = [threading.Thread(target=commit_often, args=(bank, n, commits)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        made = [read_manifest(bank, number).operation for number in list_versions(bank)][1:]
        if sorted(made) != sorted(f"{n}-{number}" for n in range(threads) for number in range(commits)):
            self.tally.find(f"{len(made)} commits of threads instead of {threads * commits}")
        self.tally.counts["commits by threads"] += len(made)

    def killed_writers(self, times: int) -> None:
        """SIGKILL at any moment: whole, and the next writer has the lock at once and leaves nothing over."""
        bank, random = self._bank("killed"), Random(SEED)
        for number in range(times):
            case, before = f"kill {number}", list_versions(bank)[-1]
            child = fork(lambda: commit_files_forever(bank))
            time.sleep(random.random() ** 2 / 10)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with self.tally.expect(case):
                found = whole_version(bank)
                if found is None or found.version < before:
                    raise TornError("a version is gone")
                with BankWriter(bank) as writer:
                    writer.commit(replace(found.contents, operation="after the kill"), found)
                self._tidy(bank)
                if list_versions(bank) != list(range(1, found.version + 2)):
                    raise TornError("numbers left out")
            self.tally.counts["writers killed at random"] += 1
            self.tally.counts["commits by killed writers"] += found.version - before if found else 0

    def killed_while_holding(self) -> None:
        """Killed for certain while it holds the lock and writes a file."""
        bank = self._bank("holding")
        reading, writing = os.pipe()

        def hold() -> None:
            def content(sink: Sink) -> None:
                sink.write(b"half of a file")
                os.write(writing, b"x")
                time.sleep(PATIENCE)

            with BankWriter(bank) as writer:
                writer.add_file("eval", content)

        child = fork(hold)
        os.read(reading, 1)
        try:
            with BankWriter(bank):
                self.tally.find("two writers held one lock")
        except BusyError as error:
            if str(child) not in str(error):
                self.tally.find(f"the holder is {child}, but the message says: {error}")
        if len(temporary_files(bank)) != 1:
            self.tally.find("the writer was not killed in the middle of a file")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
        self._next(bank, "after a writer was killed")
        self.tally.counts["writers killed while they held the lock"] += 1

    def inherited_lock(self) -> None:
        """A forked child holds the lock until it ends; a program started by the holder never does."""
        bank = self._bank("inherited")
        reading, writing = os.pipe()
        with BankWriter(bank):
            child = fork(lambda: os.read(reading, 1))
        try:
            with BankWriter(bank):
                self.tally.find("the lock was free while a forked child held it")
        except BusyError:
            pass
        os.write(writing, b"x")
        os.waitpid(child, 0)
        self._next(bank, "after the forked child ended")
        with BankWriter(bank):
            command = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
            program = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
            )
            assert program.stdout is not None
            program.stdout.readline()
        self._next(bank, "beside a program started by the holder")
        program.communicate(b"")
        os.close(reading)
        os.close(writing)
        self.tally.counts["locks inherited"] += 2

    def stale_lock_files(self) -> None:
        """What the lock file says, or that it is missing, locks nobody out."""
        bank = self._bank("stale")
        lock = bank / "writer.lock"
        for text in (b"", b"1\n", f"{os.getpid()}\n".encode(), b"999999999\n", os.urandom(100), None):
            lock.unlink() if text is None else lock.write_bytes(text)
            self._next(bank, f"with the lock file {text!r}")
            self.tally.counts["stale lock files"] += 1

    def _run(
        self,
        bank: Path,
        processes: int,
        commits: int,
        readers: int,
        others: list[Callable[[Path, Path], int]],
    ) -> int:
        stop = self.place / f"{bank.name}.stop"
        context = multiprocessing.get_context("spawn")
        workers = processes + readers + len(others)
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            reading = [
                pool.submit(read_often, bank, stop, bool(n % 2) and not others) for n in range(readers)
            ]
            more = [pool.submit(other, bank, stop) for other in others]
            writing = [pool.submit(commit_often, bank, worker, commits) for worker in range(processes)]
            try:
                busy = sum(future.result() for future in writing)
            finally:
                stop.touch()
            for number, future in enumerate(reading):
                seen = future.result()
                self.tally.counts["versions opened by readers"] += seen.opened
                for words in seen.wrong:
                    self.tally.find(f"reader {number} of {bank.name}: {words}")
            for result in more:
                self.tally.counts["versions collected meanwhile"] += result.result()
        return busy

    def _bank(self, name: str) -> Path:
        build_bank(self.place / name, ROWS)
        return self.place / name

    def _next(self, bank: Path, case: str) -> None:
        """A writer that does not wait commits."""
        with self.tally.expect(case):
            with BankWriter(bank) as writer:
                base = writer.current()
                if base is None:
                    raise CorruptError("the version is gone")
                made = writer.commit(replace(base.contents, operation=case), base)
            found = whole_version(bank)
            if found is None or found.sha256 != made.sha256:
                raise TornError("the version made is not the current one")
            self._tidy(bank)

    def _tidy(self, bank: Path) -> None:
        for file in temporary_files(bank):
            self.tally.find(f"{file.name} was left in {bank.name}")
