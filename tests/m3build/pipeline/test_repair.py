"""Building again over a damaged bank makes exactly the damaged files anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_corpus import build, data_files, sentence, write_corpus

from m3build.api import compile as compile_bank
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.errors import CorruptError
from m3build_formats.layout import SUFFIXES
from m3build_formats.rollback import rollback
from m3build_formats.verify import verify

KINDS = [kind for kind in SUFFIXES if kind != "eval"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A directory with a corpus and its bank, to be copied."""
    place = tmp_path_factory.mktemp("built")
    corpus = write_corpus(place / "corpus")
    (corpus / "bad.jsonl").write_text('{"text": 1}\n', encoding="utf-8")
    build(corpus, place / "bank", tiny_llama, max_rejects="50%", codec="PQ4x4")
    return place


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def again(place: Path, **options: Any) -> Any:
    return compile_bank(place / "corpus", place / "bank", max_rejects="50%", **options)


def one_of(bank: Path, kind: str) -> Path:
    return min(path for path in (bank / "data").iterdir() if path.name.endswith("." + SUFFIXES[kind]))


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "flipped":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])


def identities(bank: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (bank / "data").iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_alone_is_made_again(kind: str, place: Path) -> None:
    bank = place / "bank"
    good, before = data_files(bank), identities(bank)
    target = one_of(bank, kind)
    spoil(target, "flipped")
    assert verify(bank).problems
    result = again(place)
    assert not verify(bank).problems
    assert result.repaired == (target.name,)
    assert not result.changed
    assert list_versions(bank) == [1]
    assert data_files(bank) == good
    after = identities(bank)
    assert {name for name in after if after[name] != before[name]} == {target.name}
    assert bool(result.encoded) == (kind == "memories")


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_all_files_damaged_are_all_made_again(how: str, place: Path) -> None:
    good = data_files(place / "bank")
    for name in good:
        spoil(place / "bank" / "data" / name, how)
    result = again(place)
    assert data_files(place / "bank") == good
    assert set(result.repaired) == set(good)


def add_a_document(place: Path) -> None:
    text = " ".join(sentence(number) for number in range(9000, 9060))
    (place / "corpus" / "new.txt").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("kind", ["codec", "embedder"])
def test_a_trained_file_that_the_sources_no_longer_give_is_not_replaced_by_another(
    kind: str, place: Path
) -> None:
    add_a_document(place)
    again(place)
    spoil(one_of(place / "bank", kind), "flipped")
    with pytest.raises(CorruptError, match=f"{kind} file is missing or damaged.*--retrain"):
        again(place)
    result = again(place, retrain=True)
    assert result.changed
    assert not verify(place / "bank", version=result.version).problems


def test_a_damaged_manifest_is_gone_over_by_a_rollback_and_a_build(place: Path) -> None:
    bank = place / "bank"
    add_a_document(place)
    again(place)
    path = bank / "versions" / "00000002.json"
    good, files = read_manifest(bank), data_files(bank)
    spoil(path, "flipped")
    with pytest.raises(CorruptError, match=r"00000002\.json.*damaged.*m3build rollback to a version before"):
        again(place)
    assert data_files(bank) == files
    rollback(bank, 1)
    result = again(place)
    assert (result.version, result.manifest.shards) == (4, good.shards)
    assert {problem.file for problem in verify(bank).problems} == {"versions/00000002.json"}


def test_retraining_makes_what_a_fresh_build_makes(place: Path, tiny_llama: Path) -> None:
    add_a_document(place)
    retrained = again(place, retrain=True)
    fresh = build(place / "corpus", place / "fresh", tiny_llama, max_rejects="50%", codec="PQ4x4")
    assert retrained.manifest.all_files() == fresh.manifest.all_files()
    assert not again(place, retrain=True).changed
