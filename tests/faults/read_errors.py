"""Errors at every call of a reader, and short reads: the right answer or an expected error, never another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal

from crashes import SEED
from failures import ERRORS, Failure, Fault, faults
from inspection import answers, wrong_answers
from recorder import Recorder
from tally import Tally

from m3build_formats.bank import read_manifest
from m3build_formats.errors import ResourceError
from m3build_formats.verify import Report, verify


class ReadErrors:
    """Errors while a bank is read and verified."""

    def __init__(self, bank: Path, tally: Tally) -> None:
        self.bank = bank
        self.tally = tally
        self.good = answers(bank)
        self.report = verify(bank)
        self.digest = read_manifest(bank).sha256
        self._uses: dict[str, Callable[[], str | None]] = {
            "reading": self._read,
            "verify": lambda: self._verify("default"),
            "verify quick": lambda: self._verify("quick"),
            "pinned": self._pinned,
        }

    def errors(self, step: int = 1) -> None:
        """Each fault in every use of a bank that only reads."""
        for name, use in self._uses.items():
            with Recorder(self.bank) as recorder:
                assert use() is None
            for fault in faults(recorder.calls, step):
                failure = Failure(fault)
                with Recorder(self.bank, failure) as recorder:
                    try:
                        wrong = use()
                    except BaseException as error:  # noqa: BLE001 (judged, not swallowed)
                        wrong = self._judge(error, fault)
                if recorder.left_open and fault.error != "KeyboardInterrupt":
                    wrong = wrong or f"left {recorder.left_open[0]} open"
                if wrong:
                    self.tally.find(f"{name}: {fault}: {failure.call}: {wrong}")
                self.tally.counts[f"errors in {name}"] += 1

    def short_reads(self, times: int) -> None:
        """Reads that give fewer bytes than asked for change no answer."""
        for seed in range(times):
            for name, use in self._uses.items():
                with Recorder(self.bank, short=Random(SEED + seed)):
                    wrong = use()
                if wrong:
                    self.tally.find(f"{name} with short reads, seed {seed}: {wrong}")
                self.tally.counts["uses with short reads"] += 1

    def _read(self) -> str | None:
        wrong = wrong_answers(answers(self.bank), self.good)
        return f"another answer than without errors: {wrong[0]}" if wrong else None

    def _verify(self, level: Literal["default", "quick"]) -> str | None:
        report = verify(self.bank, level)
        return (
            "says that all is well, and another list of files"
            if report.ok and (not self._same(report))
            else None
        )

    def _same(self, report: Report) -> bool:
        return (report.unreachable, report.files_checked) == (
            self.report.unreachable,
            self.report.files_checked,
        )

    def _pinned(self) -> str | None:
        found = read_manifest(self.bank, expect=f"sha256:{self.digest}").sha256
        return None if found == self.digest else "another version than the one pinned"

    def _judge(self, error: BaseException, fault: Fault) -> str | None:
        if fault.error in ("MemoryError", "KeyboardInterrupt"):
            expected = isinstance(error, ERRORS[fault.error]().__class__)
        else:
            expected = isinstance(error, ResourceError)
        return None if expected else f"raised {type(error).__name__}: {error}"
