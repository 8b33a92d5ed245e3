"""What is excluded leaves the bank, stays out, and after a purge no file holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from small_corpus import build, write_corpus

from m3build.api import compile as compile_bank
from m3build.bank import open_bank
from m3build.corpus.exclusion import Exclusion
from m3build.records import Document
from m3build_formats.bank import read_manifest
from m3build_formats.errors import InputError, UsageError
from m3build_formats.gc import collect
from m3build_formats.info import describe

SECRET = "Zarquon keeps the vermilion ledger under the third flagstone of Quillhaven."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = write_corpus(tmp_path / "corpus")
    (directory / "letters").mkdir()
    (directory / "letters" / "secret.txt").write_text(f"{SECRET}\n\n{SECRET[::-1]}", encoding="utf-8")
    records = [{"id": "open", "text": "A record that may stay."}, {"id": "hidden", "text": SECRET.upper()}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "records.jsonl").write_text(lines, encoding="utf-8")
    return directory


def documents(bank: Path) -> set[str]:
    with open_bank(bank) as opened:
        return {
            place.document
            for shard in opened.files.shards
            for chunk in shard.chunks()
            for place in chunk.occurrences
        }


@pytest.mark.parametrize(
    ("pattern", "name", "taken"),
    [
        ("a/b.txt", "a/b.txt", True),
        ("a/*", "a/b/c.txt", True),
        ("*.txt", "a/B.TXT", False),
        ("[draft].txt", "[draft].txt", True),
        ("b.txt", "a/b.txt", False),
    ],
)
def test_a_pattern_is_a_name_or_a_shell_pattern(pattern: str, name: str, taken: bool) -> None:
    assert Exclusion([pattern]).takes_file(name) == taken
    assert Exclusion([pattern]).takes(Document("some id", name, 0, "text")) == taken
    assert Exclusion([pattern]).takes(Document(name, "some source", 0, "text")) == taken


def test_what_is_excluded_leaves_the_bank_and_stays_out(
    corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    bank = tmp_path / "bank"
    build(corpus, bank, tiny_llama, id_field="id")
    assert {"letters/secret.txt", "hidden", "open"} <= documents(bank)
    result = compile_bank(corpus, bank, exclude=("letters/*", "hidden", "nothing-like-this"))
    assert documents(bank) == {
        "open",
        *(f"{number:02d}.txt" for number in range(12)),
        "copy-of-00.txt",
        "zh.md",
    }
    facts = describe(result.manifest)
    assert facts["excluded"] == 2
    assert facts["exclude"] == ["hidden", "letters/*", "nothing-like-this"]
    assert any("nothing-like-this" in note for note in result.notes)
    assert any("gc --purge" in note for note in result.notes)
    assert not any("letters" in note for note in result.notes)
    # The next builds do not name the patterns, one of them changes options.
    assert not compile_bank(corpus, bank).changed
    compile_bank(corpus, bank, rebuild=True, title=True)
    assert not {"letters/secret.txt", "hidden"} & documents(bank)
    assert compile_bank(corpus, bank, readmit=("letters/*",)).changed
    assert "letters/secret.txt" in documents(bank)
    assert "hidden" not in documents(bank)


def test_one_pattern_may_be_given_alone(corpus: Path, tmp_path: Path, tiny_llama: Path) -> None:
    bank = tmp_path / "bank"
    build(corpus, bank, tiny_llama, id_field="id")
    compile_bank(corpus, bank, exclude="letters/*")
    assert "letters/secret.txt" not in documents(bank)
    assert "open" in documents(bank)
    compile_bank(corpus, bank, readmit="letters/*")
    assert "letters/secret.txt" in documents(bank)


def test_readmitting_what_is_not_excluded_is_refused_by_name(
    corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    build(corpus, tmp_path / "bank", tiny_llama, exclude=("letters/*",))
    with pytest.raises(UsageError, match=r"letters/x.*the bank excludes letters/\*"):
        compile_bank(corpus, tmp_path / "bank", readmit=("letters/x",))


def test_a_bank_with_everything_excluded_is_not_made(corpus: Path, tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="nothing to compile"):
        build(corpus, tmp_path / "bank", tiny_llama, exclude=("*",))


def test_rejects_of_excluded_sources_are_not_kept(corpus: Path, tmp_path: Path, tiny_llama: Path) -> None:
    (corpus / "letters" / "bad.jsonl").write_text('{"text": 1}\n{"broken\n', encoding="utf-8")
    result = build(corpus, tmp_path / "bank", tiny_llama, exclude=("letters/*",), max_rejects="0")
    assert describe(result.manifest)["rejects"] == 0


def every_byte(bank: Path) -> dict[str, bytes]:
    """All files below a bank, compressed ones decompressed too."""
    found = {}
    for path in bank.rglob("*"):
        if path.is_file():
            found[path.name] = path.read_bytes()
            if path.name.endswith(".zst"):
                found[f"{path.name} decompressed"] = zstandard.ZstdDecompressor().decompress(
                    found[path.name], max_output_size=1 << 26
                )
    return found


def test_after_a_purge_no_byte_of_what_was_excluded_is_left(
    corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    bank = tmp_path / "bank"
    (corpus / "letters" / "broken.jsonl").write_text('{"text": 7}\n', encoding="utf-8")
    build(corpus, bank, tiny_llama, id_field="id", max_rejects="50%")
    needles: dict[str, bytes] = {"reject": b"broken.jsonl"}
    with open_bank(bank) as opened:
        for number, shard in enumerate(opened.files.shards):
            for row, chunk in enumerate(shard.chunks()):
                if {place.document for place in chunk.occurrences} & {"letters/secret.txt", "hidden"}:
                    name = f"{number}/{row}"
                    needles[f"text {name}"] = chunk.text.encode()
                    needles[f"id {name}"] = bytes(chunk.id)
                    needles[f"codes {name}"] = shard.memories([row])[0].tobytes()
                    vectors: Any = np.concatenate(list(shard.embeddings()))
                    needles[f"embedding {name}"] = vectors[row].astype(np.float16).tobytes()
    assert len(needles) >= 9
    before = every_byte(bank)
    for name, needle in needles.items():
        assert any(needle in data for data in before.values()), name
    compile_bank(corpus, bank, exclude=("letters/*", "hidden"), max_rejects="50%")
    between = every_byte(bank)
    assert any(needles["reject"] in data for data in between.values())
    collect(bank, purge=True)
    after = every_byte(bank)
    for name, needle in needles.items():
        holding = [file for file, data in after.items() if needle in data]
        assert not holding, name
    assert read_manifest(bank).version == 2
