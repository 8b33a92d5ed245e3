"""Each hostile bank is refused with a typed error, or read for what it is; nothing else happens."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from case import Case, load_all
from forge import Forge
from reading import LONGEST_MESSAGE
from server import Reader

CASES = load_all()
BANK_BYTES_FACTOR = 4
CONSTANT_BYTES = 96 << 20
"""Memory that a reader may take: some copies of the files, and what it takes for a bank of a few rows (the
lexical embedder's tables are most of it)."""


def test_there_are_a_hundred_cases() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_bank(name: str, tmp_path: Path, sound: dict[str, Forge], reader: Reader) -> None:
    case: Case = CASES[name]
    forge = sound[case.spec].copy()
    case.spoil(forge)
    bank = forge.write(tmp_path / "bank")
    if case.on_disk:
        case.on_disk(bank)
    before = _listing(tmp_path)
    answer = reader.read(bank, case.commands)
    outcomes = answer["outcomes"]

    untyped = {step: outcome for step, outcome in outcomes.items() if not outcome["typed"]}
    assert not untyped
    failed = {step: outcome for step, outcome in outcomes.items() if outcome["error"]}
    for outcome in failed.values():
        assert len(outcome["text"]) <= LONGEST_MESSAGE
        assert outcome["text"].isprintable() or "\n" in outcome["text"]
    reads = {step: outcome for step, outcome in failed.items() if "verify" not in step}
    if case.error:
        assert next(iter(reads), None) == case.step
        assert reads[case.step]["error"] == case.error
        assert re.search(case.words, reads[case.step]["text"])
    else:
        assert not reads
    assert ("verify" not in failed) == case.verified
    if case.same:
        sound_outcomes = reader.sound(case.spec)
        assert _digests(outcomes) == _digests({step: sound_outcomes[step] for step in outcomes})
    assert answer["opened"] == []
    assert _listing(tmp_path) == before
    if sys.platform == "linux":
        size = sum(os.lstat(path).st_blocks * 512 for path in bank.rglob("*"))
        assert answer["grown"] <= BANK_BYTES_FACTOR * size + CONSTANT_BYTES + case.memory


def _digests(outcomes: dict[str, dict[str, str]]) -> dict[str, str]:
    """What was read, but for the manifest and what counts files."""
    skipped = ("manifest", "info", "m3build info", "verify", "verify quick", "m3build verify")
    return {step: outcome["text"] for step, outcome in outcomes.items() if step not in skipped}


def _listing(place: Path) -> list[tuple[str, int, int]]:
    """Every name below a place with its inode and size: what was created, deleted or replaced shows."""
    found = [(path, os.lstat(path)) for path in place.rglob("*")]
    return sorted((os.fsencode(path).hex(), status.st_ino, status.st_size) for path, status in found)
