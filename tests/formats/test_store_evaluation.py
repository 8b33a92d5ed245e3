from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from corpus_bank import Doc, commit_corpus

from m3build_formats.bank import list_versions, open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import BusyError
from m3build_formats.evaluation_file import evaluation_facts, load_evaluation
from m3build_formats.history import same_contents, versions
from m3build_formats.rollback import rollback
from m3build_formats.store_evaluation import same_but_evaluation, store_evaluation
from m3build_formats.verify import verify

# What the sample bank's own evaluation file holds.
SAMPLE = {"loss": 1.25}


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    commit_corpus(tmp_path / "bank", [[Doc("a", ("one", "two"))]])
    return tmp_path / "bank"


def test_an_evaluation_is_a_new_version_that_differs_in_nothing_else(bank: Path) -> None:
    first = read_manifest(bank)
    made = store_evaluation(bank, first, {"loss": {"none": 1.5}})
    assert made is not None
    assert (made.version, made.operation) == (2, "eval")
    assert same_but_evaluation(made, first)
    assert not same_contents(made, first)
    with open_bank(bank) as opened:
        assert opened.evaluation() == {"loss": {"none": 1.5}}
    assert load_evaluation(bank, made) == {"loss": {"none": 1.5}}
    assert load_evaluation(bank, first) == SAMPLE
    report = verify(bank)
    assert not report.problems
    assert [record.version for record in versions(bank)] == [2, 1]


def test_it_goes_on_top_of_a_newer_version_that_holds_the_same(bank: Path) -> None:
    first = read_manifest(bank)
    store_evaluation(bank, first, {"number": 1})
    made = store_evaluation(bank, first, {"number": 2})
    assert made is not None
    assert made.version == 3
    assert made.base is not None
    assert made.base.version == 2
    assert load_evaluation(bank, made) == {"number": 2}


def test_it_is_not_stored_where_the_bank_holds_something_else_by_now(bank: Path) -> None:
    first = read_manifest(bank)
    commit_corpus(bank, [[Doc("a", ("one", "three"))]])
    assert store_evaluation(bank, first, {"number": 1}) is None
    assert list_versions(bank) == [1, 2]
    assert load_evaluation(bank, read_manifest(bank)) == SAMPLE


def test_a_rollback_brings_the_evaluation_of_its_version_back(bank: Path) -> None:
    store_evaluation(bank, read_manifest(bank), {"number": 1})
    commit_corpus(bank, [[Doc("a", ("one", "three"))]])
    rollback(bank, 2)
    assert load_evaluation(bank, read_manifest(bank)) == {"number": 1}


def test_another_writer_is_waited_for_and_then_it_is_busy(bank: Path) -> None:
    first = read_manifest(bank)
    done = threading.Event()
    begun = threading.Event()

    def hold() -> None:
        with BankWriter(bank):
            begun.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(10)
    with pytest.raises(BusyError):
        store_evaluation(bank, first, {}, wait_seconds=0.0)
    done.set()
    holder.join()
    assert store_evaluation(bank, first, {}) is not None


def test_a_damaged_evaluation_is_named_and_the_other_facts_stand(bank: Path) -> None:
    made = store_evaluation(bank, read_manifest(bank), {"tokens": 7, "by_chunk": [1, 2]})
    assert made is not None
    assert made.files.eval is not None
    assert evaluation_facts(bank, made) == {"tokens": 7}
    file = bank / "data" / made.files.eval.name
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b"7", b"8"))
    facts = evaluation_facts(bank, made)
    assert facts is not None
    assert made.files.eval.name in facts["problem"]
    file.unlink()
    facts = evaluation_facts(bank, made)
    assert facts is not None
    assert "missing" in facts["problem"]


def test_a_version_without_an_evaluation_has_no_facts_of_one(bank: Path) -> None:
    first = read_manifest(bank)
    bare = replace(first, files=replace(first.files, eval=None))
    assert load_evaluation(bank, bare) is None
    assert evaluation_facts(bank, bare) is None
