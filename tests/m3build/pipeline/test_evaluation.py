"""What a build does with the evaluation that a bank has."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_corpus import build, write_corpus

from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.evaluation_file import load_evaluation
from m3build_formats.rollback import rollback
from m3build_formats.store_evaluation import store_evaluation

MEASURED = {"loss": {"none": 2.0}}


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path) -> Path:
    build(write_corpus(tmp_path / "corpus"), tmp_path / "bank", tiny_llama)
    store_evaluation(tmp_path / "bank", read_manifest(tmp_path / "bank"), MEASURED)
    return tmp_path


def test_it_stays_while_the_content_does_and_leaves_with_a_change(place: Path, tiny_llama: Path) -> None:
    bank = place / "bank"
    again = build(place / "corpus", bank, tiny_llama)
    assert not again.changed
    assert load_evaluation(bank, read_manifest(bank)) == MEASURED
    (place / "corpus" / "new.txt").write_text("A document that was not there before.", encoding="utf-8")
    changed = build(place / "corpus", bank, tiny_llama)
    assert changed.changed
    assert read_manifest(bank).files.eval is None
    rollback(bank, 2)
    with open_bank(bank) as opened:
        assert opened.evaluation() == MEASURED


def test_a_damaged_one_is_dropped_by_the_next_build(place: Path, tiny_llama: Path) -> None:
    bank = place / "bank"
    entry = read_manifest(bank).files.eval
    assert entry is not None
    (bank / "data" / entry.name).chmod(0o644)
    (bank / "data" / entry.name).write_bytes(b"{}\n")
    again = build(place / "corpus", bank, tiny_llama)
    assert again.changed
    assert again.encoded == 0
    assert read_manifest(bank).files.eval is None
