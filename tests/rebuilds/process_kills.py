"""Builds in real processes, killed at random moments, run again, and compared with one that nobody killed.

Half of them make a bank's first version, half its second one after an edit. Each runs in surroundings of its
own: directory, time zone, locale, threads, batch budget.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

from small_corpus import sentence
from warm_processes import Command, Surroundings

KILLS: Final = 2
LOCALES: Final = ("C", "C.UTF-8", "POSIX")
ZONES: Final = ("UTC", "Asia/Kathmandu", "America/St_Johns")


class Kills:
    """The two reference banks in ``place``, and how to try one build against them. ``counts`` says what
    happened."""

    def __init__(self, place: Path, model: Path) -> None:
        self._place = place
        self._model = model
        self.counts: Counter[str] = Counter()
        for name, changed in (("first", False), ("second", True)):
            _write_corpus(place / name, changed)
        around = Surroundings(place)
        self._seconds = [0.0, 0.0]
        for at, (corpus, bank) in enumerate((("first", "bank-1"), ("second", "bank-2"))):
            # Twice, for the first process ever waits until all is imported.
            for bank_of in (place / f"warm-up-{at}", place / bank):
                if at:
                    shutil.copytree(place / "bank-1", bank_of)
                self._seconds[at] = self._finish(corpus, bank_of, around, 16384)

    def try_one(self, number: int, draw: random.Random) -> bool:
        """One build, killed ``KILLS`` times, then finished; raises AssertionError where it made other
        bytes. False where it was done before it could be killed so often."""
        second = number % 2
        home = self._place / f"case-{number}"
        home.mkdir()
        if second:
            shutil.copytree(self._place / "bank-1", home / "bank")
        corpus = ("first", "second")[second]
        killed = 0
        for _ in range(KILLS):
            around, budget = self._surroundings(home, draw)
            around = replace(around, dies_after=draw.random() * self._seconds[second])
            command = self._start(corpus, home / "bank", around, budget)
            code = command.wait()
            killed += code == -signal.SIGPROF
            assert code in (0, -signal.SIGPROF), command.errors
        around, budget = self._surroundings(home, draw)
        self._finish(corpus, home / "bank", around, budget)
        _same(home / "bank", self._place / f"bank-{1 + second}")
        often = {KILLS: "killed twice", 1: "killed once, and done before the second time", 0: "never killed"}
        self.counts[f"builds {often[killed]}: equal to one that nobody killed"] += 1
        shutil.rmtree(home)
        return killed == KILLS

    def _surroundings(self, home: Path, draw: random.Random) -> tuple[Surroundings, int]:
        # The working directory is the case's own or its parent, so that relative paths differ.
        around = Surroundings(
            draw.choice([home, self._place]),
            {"TZ": draw.choice(ZONES)},
            draw.choice(LOCALES),
            draw.choice([1, 2, 3]),
        )
        return around, draw.choice([64, 500, 16384])

    def _start(self, corpus: str, bank: Path, around: Surroundings, batch_tokens: int) -> Command:
        path = bank.relative_to(around.directory)
        arguments = ["compile", str(self._place / corpus), "-o", str(path), "--model", str(self._model)]
        arguments += ["--batch-tokens", str(batch_tokens), "--progress", "none", "--json"]
        if not (bank / "versions").exists() or not any((bank / "versions").iterdir()):
            arguments += ["--codec", "SQ8", "--shard-chunks", "4"]
        # The time of the commit is the only thing in a manifest that would differ.
        fixed = {**around.environment, "SOURCE_DATE_EPOCH": "1700000000"}
        return Command(
            arguments,
            replace(around, environment=fixed),
            bank.parent,
        )

    def _finish(self, corpus: str, bank: Path, around: Surroundings, batch_tokens: int) -> float:
        """Seconds of the processor that it took."""
        command = self._start(corpus, bank, around, batch_tokens)
        assert command.wait() == 0, command.errors
        return command.spent


def kill_builds(place: Path, model: Path, builds: int, seed: int) -> Counter[str]:
    """Try until that many were killed twice; raises AssertionError at the first that is not equal."""
    kills, draw = Kills(place, model), random.Random(seed)
    number = twice = 0
    while twice < builds:
        twice += kills.try_one(number, draw)
        number += 1
    return kills.counts


def _write_corpus(directory: Path, changed: bool) -> None:
    directory.mkdir()
    for number in range(8):
        words = [sentence(number * 20 + i) for i in range(4)]
        if changed and number in (2, 5):
            words[1] = sentence(900 + number)
        (directory / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")


def _same(bank: Path, other: Path) -> None:
    """Asserts that versions, and the data files that they name, are the same bytes."""
    from m3build_formats.bank import list_versions, read_manifest

    numbers = list_versions(bank)
    assert numbers == list_versions(other)
    for number in numbers:
        name = f"versions/{number:08d}.json"
        assert (bank / name).read_bytes() == (other / name).read_bytes()
        for file in read_manifest(bank, number).all_files():
            assert (bank / "data" / file).read_bytes() == (other / "data" / file).read_bytes()
