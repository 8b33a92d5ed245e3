"""What query chunks read: never found with what they predict, never what the text holds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
from models import tiny_tokenizer
from small_corpus import build

from m3build.bank import Bank, open_bank
from m3build.evaluation.held_out import HeldOut
from m3build.evaluation.overlap import overlap
from m3build.evaluation.references import References, read_fixed
from m3build.evaluation.windows import windows_of
from m3build_formats.errors import InputError, UsageError

CHUNK = 16
# The texts are of one made-up language, so any two have much in common, and only copies all.
LIMIT = 0.9


def words_of(seed: int) -> str:
    """Forty words of three to eight letters."""
    drawn = random.Random(seed)
    words = ("".join(drawn.choices(ascii_lowercase, k=drawn.randint(3, 8))) for _ in range(40))
    return " ".join(words).capitalize() + "."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    directory = tmp_path_factory.mktemp("references")
    (directory / "corpus").mkdir()
    for number in range(12):
        (directory / "corpus" / f"{number:02d}.txt").write_text(words_of(number), encoding="utf-8")
    build(directory / "corpus", directory / "bank", tiny_llama)
    return directory


@pytest.fixture
def bank(place: Path) -> Iterator[Bank]:
    with open_bank(place / "bank") as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def document_of(text: str, tokenizer: Any) -> HeldOut:
    return HeldOut("held-out", len(text), tuple(tokenizer.encode(text, add_special_tokens=False)))


UNSEEN = words_of(1000) + " " + words_of(1001)


def test_a_chunk_reads_what_the_one_before_retrieved_and_the_first_none(bank: Bank, tokenizer: Any) -> None:
    document = document_of(UNSEEN, tokenizer)
    windows = list(windows_of(document, 0, 0, 4 * CHUNK, CHUNK))
    reads = References(bank, tokenizer, 3, limit=1.0).of(document, windows)
    own = References(bank, tokenizer, 3, limit=1.0, query="own").of(document, windows)
    assert len(reads) > 1
    for read, by_itself in zip(reads, own, strict=True):
        assert read.found[0] == ()
        for chunk in range(1, read.window.chunks):
            query = tokenizer.decode(read.window.of_chunk(chunk - 1), skip_special_tokens=True)
            expected = [hit.id for hit in bank.search(query, 3)[0]]
            assert [reference.id for reference in read.found[chunk]] == expected
            assert [reference.id for reference in by_itself.found[chunk - 1]] == expected


def test_references_that_the_text_holds_are_left_out_and_the_next_take_their_place(
    place: Path, bank: Bank, tokenizer: Any
) -> None:
    # The text under test holds a document of the bank.
    document = document_of((place / "corpus" / "03.txt").read_text("utf-8") + UNSEEN, tokenizer)
    windows = list(windows_of(document, 0, 0, 8 * CHUNK, CHUNK))
    every = References(bank, tokenizer, 2, limit=1.0)
    found = [one for read in every.of(document, windows) for some in read.found for one in some]
    assert every.left_out == 0
    assert max(overlap(document.ids, one.ids) for one in found) > LIMIT
    some = References(bank, tokenizer, 2, limit=LIMIT)
    reads = some.of(document, windows)
    kept = [one for read in reads for part in (*read.found, *read.random) for one in part]
    assert some.left_out > 0
    assert max(overlap(document.ids, one.ids) for one in kept) <= LIMIT
    assert any(len(part) == 2 for read in reads for part in read.found)


def test_what_a_chunk_goes_on_with_is_read_where_the_chunk_itself_is_left_out(
    tmp_path: Path, tiny_llama: Path, tokenizer: Any
) -> None:
    for number in range(4):
        text = "\n\n".join(words_of(10 * number + part) for part in range(3))
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    build(tmp_path, tmp_path / "bank", tiny_llama)
    with open_bank(tmp_path / "bank") as bank:
        by_text = {hit.text: hit for number in range(40) for hit in bank.search(words_of(number), 12)[0]}
        copied = next(hit for hit in by_text.values() if hit.sources[0].document.startswith("2"))
        (_, after), *_ = bank.search(copied.text, 2, continuations=True)
        document = document_of(copied.text + UNSEEN, tokenizer)
        windows = list(windows_of(document, 0, 0, 8 * CHUNK, CHUNK))
        first = {
            continuations: [
                one.id
                for one in References(bank, tokenizer, 1, limit=LIMIT, continuations=continuations)
                .of(document, windows)[0]
                .found[1]
            ]
            for continuations in (False, True)
        }
    assert after.row == copied.row + 1
    assert first[True] == [after.id]
    assert first[False] not in ([copied.id], [after.id])


def test_as_many_are_drawn_at_random_and_always_the_same(bank: Bank, tokenizer: Any) -> None:
    document = document_of(UNSEEN, tokenizer)
    windows = list(windows_of(document, 0, 0, 8 * CHUNK, CHUNK))

    def drawn(seed: int) -> list[list[str]]:
        reads = References(bank, tokenizer, 4, limit=LIMIT, seed=seed).of(document, windows)
        for read in reads:
            assert [len(some) for some in read.random] == [len(some) for some in read.found]
        return [[one.id for one in some] for read in reads for some in read.random]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    for some in drawn(0):
        assert len(set(some)) == len(some)


def test_fixed_references_take_the_place_of_retrieval(tmp_path: Path, bank: Bank, tokenizer: Any) -> None:
    hits = bank.search(words_of(1), 3)[0]
    file = tmp_path / "fixed.jsonl"
    lines = [
        {"document": "held-out", "chunk": 0, "references": [hits[0].id[:12], hits[1].id]},
        {"document": "held-out", "chunk": 9, "references": [hits[2].id]},
        {"document": "another", "chunk": 1, "references": [hits[2].id]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    document = document_of(UNSEEN, tokenizer)
    windows = list(windows_of(document, 0, 0, 8 * CHUNK, CHUNK))
    references = References(bank, tokenizer, 5, limit=1.0, fixed=read_fixed(file))
    by_chunk = [some for read in references.of(document, windows) for some in read.found]
    read = {number: [one.id for one in some] for number, some in enumerate(by_chunk) if some}
    assert read == {0: [hits[0].id, hits[1].id], 9: [hits[2].id]}
    assert windows[1].first_chunk == 8


@pytest.mark.parametrize("line", ["[]", "{", '{"document": "a", "chunk": "0", "references": []}'])
def test_a_file_of_references_that_is_none_is_refused_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "fixed.jsonl").write_text("\n" + line, encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        read_fixed(tmp_path / "fixed.jsonl")
    with pytest.raises(UsageError, match="no such file"):
        read_fixed(tmp_path / "none")
