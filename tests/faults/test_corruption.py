"""The short form of the damage to files, and of banks without any."""

from __future__ import annotations

from pathlib import Path

import pytest
from corruption_cases import KINDS, CorruptionCases
from inspection import answers, wrong_answers
from tally import Tally

from m3build_formats.errors import CorruptError
from m3build_formats.verify import verify


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    tally = Tally("corruption")
    CorruptionCases(tmp_path, tally).flip_manifest(step=499)
    tally.check()
    assert tally.counts["flips in a manifest"] > 80


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_a_file_is_found_and_named_and_never_read(tmp_path: Path, kind: str) -> None:
    tally = Tally("corruption")
    cases = CorruptionCases(tmp_path, tally)
    cases.flip_data(kind, 30)
    cases.other_sizes(kind)
    cases.other_bytes(kind, 3)
    cases.missing(kind)
    tally.check()
    assert tally.counts[f"flips in {kind}"] == 30
    assert tally.counts["reads refused"] > 30


def test_files_and_manifests_in_the_place_of_others_are_found(tmp_path: Path) -> None:
    tally = Tally("corruption")
    cases = CorruptionCases(tmp_path, tally)
    cases.swapped()
    cases.other_manifests()
    tally.check()


def test_good_banks_of_any_shape_raise_no_alarm(tmp_path: Path) -> None:
    tally = Tally("good-banks")
    CorruptionCases(tmp_path, tally).good_banks(30)
    tally.check()
    assert tally.counts["good banks"] == 30


def test_a_wrong_answer_would_be_noticed(tmp_path: Path) -> None:
    tally = Tally("corruption")
    cases = CorruptionCases(tmp_path, tally)
    found = answers(cases.bank)
    assert wrong_answers(found, cases.good) == []
    found["shards[0].memories"] = found["shards[0].memories"][::-1]
    found["evaluation"] = CorruptError
    assert wrong_answers(found, cases.good) == ["shards[0].memories"]
    assert verify(cases.bank).ok
