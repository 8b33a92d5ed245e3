"""Search over a bank: the right chunks, each once, with their sources, and nothing from damaged bytes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from m3build.bank import open_bank
from m3build.embed.lexical import LexicalEmbedder
from m3build.search import Searcher, Source, search
from m3build_formats.bank import open_bank as open_files
from m3build_formats.errors import CorruptError, MismatchError, UsageError


class BankMaker(Protocol):
    def __call__(
        self, shards: list[list[str]], spec: str = "auto", memories: bool = True, candidates: int = 200
    ) -> Path: ...


ANIMALS = ["The fox is quick and brown.", "A lazy dog sleeps in the sun.", "Wolves hunt in packs at night."]
THINGS = ["A bank is a directory of files.", "记忆是稀疏的注意力键和值。", "Wolves hunt in packs at night."]
SHARDS = [
    ANIMALS,
    THINGS,
    [*ANIMALS[:1], "Shared memory of two processes.", "Shared memory of two processes."],
]
SPECS = ["auto", "Flat", "SQ8", "IVF2,Flat", "IVF2,SQ8", "HNSW8"]


@pytest.fixture(scope="module", params=SPECS)
def bank(request: pytest.FixtureRequest, make_bank: BankMaker) -> Path:
    return make_bank(SHARDS, request.param)


def test_the_chunk_that_answers_comes_first(bank: Path) -> None:
    with open_files(bank) as files:
        found = search(files, ["which dog sleeps?", "稀疏注意力", "what is a bank"], k=2)
    assert [hits[0].text for hits in found] == [ANIMALS[1], THINGS[1], THINGS[0]]
    assert all(hits[0].score > hits[1].score for hits in found if len(hits) > 1)


def test_a_text_in_several_shards_is_returned_once_with_all_its_places(bank: Path) -> None:
    with open_files(bank) as files:
        (hits,) = search(files, ["wolves in packs"], k=5)
    assert [hit.text for hit in hits].count(ANIMALS[2]) == 1
    start = sum(len(text) + 1 for text in ANIMALS[:2])
    later = sum(len(text) + 1 for text in THINGS[:2])
    assert hits[0].sources == (
        Source("d0", "file0.txt", 7, start, start + len(ANIMALS[2])),
        Source("d1", "file1.txt", 7, later, later + len(THINGS[2])),
    )
    assert (hits[0].shard, hits[0].row) == (0, 2)


def test_a_text_twice_in_one_shard_has_two_places(bank: Path) -> None:
    with open_files(bank) as files:
        ((hit, *_),) = search(files, ["shared memory processes"], k=1)
    assert [source.start for source in hit.sources] == [28, 28 + 32]
    assert (hit.shard, hit.row) == (2, 1)


def test_a_scan_of_all_embeddings_gives_the_same_hits(bank: Path) -> None:
    queries = ["fox", "memory", "packs of wolves", "directory"]
    with open_files(bank) as files:
        searcher = Searcher(files)
        assert searcher.search(queries, 3, exact=True) == searcher.search(queries, 3)


def test_with_continuations_each_hit_is_followed_by_what_its_document_goes_on_with(bank: Path) -> None:
    with open_files(bank) as files:
        searcher = Searcher(files)
        ((dog, goes_on, *rest),) = searcher.search(["which dog sleeps?"], 4, continuations=True)
        ((last, *after),) = searcher.search(["wolves in packs at night"], 4, continuations=True)
        (pair,) = searcher.search([f"{ANIMALS[0]} A dog."], 3, continuations=True)
        (one,) = searcher.search(["which dog sleeps?"], 1, continuations=True)
    assert [dog.text, goes_on.text] == ANIMALS[1:]
    assert (goes_on.shard, goes_on.row, goes_on.score) == (0, 2, dog.score)
    assert goes_on.sources[0].document == "d0"
    assert goes_on.sources[0].start > dog.sources[0].start
    # It ends its document; and no chunk is given twice.
    assert last.text == ANIMALS[2]
    assert len({hit.id for hit in [dog, goes_on, *rest]}) == 2 + len(rest) <= 4
    assert not any((hit.shard == 0 and hit.row == 3) or hit.score == last.score for hit in after)
    # A hit that an earlier one goes on with stays where that put it.
    assert [hit.text for hit in pair] == ANIMALS
    assert [hit.text for hit in one] == ANIMALS[1:2]


def test_a_chunk_does_not_go_on_in_another_document(make_bank: BankMaker) -> None:
    path = make_bank([["One text about lions.", "Two texts about lions."]])
    with open_files(path) as files:
        shard = files.shards[0]
        chunk = shard.chunk
        first, other = chunk(0), chunk(1)
        elsewhere = replace(other, occurrences=tuple(replace(one, row=9) for one in other.occurrences))
        shard.chunk = lambda row: (first, elsewhere)[row]  # type: ignore[method-assign]
        searcher = Searcher(files)
        assert searcher._continuation(searcher.search(["One text about lions."], 1)[0][0]) is None


def test_fewer_hits_than_asked_for_where_nothing_else_fits(bank: Path) -> None:
    with open_files(bank) as files:
        blank, foreign, many = search(files, [" ", "ζζζ", "a directory"], k=1000)
    assert blank == foreign == []
    assert 1 <= len(many) <= 6


def test_no_query_no_answer(bank: Path) -> None:
    with open_files(bank) as files:
        assert search(files, []) == []
        with pytest.raises(UsageError, match="at least 1"):
            search(files, ["fox"], k=0)


def test_copies_do_not_crowd_out_other_texts(make_bank: BankMaker) -> None:
    copies = [[f"wolf wolf wolf {number % 3}"] for number in range(30)]
    path = make_bank([*copies, ["a wolf once", "two wolves"]], candidates=4)
    with open_files(path) as files:
        (few, *_), (all_,) = search(files, ["wolf"], 1), search(files, ["wolf"], 5)
    assert len(few[0].sources) >= 1
    assert len({hit.text for hit in all_}) == len(all_) == 5


def test_many_threads_get_the_same_answer(bank: Path) -> None:
    with open_files(bank) as files, ThreadPoolExecutor(8) as pool:
        searcher = Searcher(files)
        answers = list(pool.map(lambda _: searcher.search(["fox in the sun"], 3), range(16)))
    assert all(answer == answers[0] for answer in answers)


def test_a_flipped_bit_of_the_index_is_found_before_faiss_reads_it(make_bank: BankMaker) -> None:
    path = make_bank(SHARDS)
    victim = sorted((path / "data").glob("*.index"))[0]
    damaged = bytearray(victim.read_bytes())
    damaged[-5] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(damaged)
    with open_files(path) as files, pytest.raises(CorruptError, match=victim.name):
        search(files, ["fox"])


def test_an_embedder_that_is_not_the_banks_is_a_mismatch(bank: Path) -> None:
    with open_files(bank) as files:
        with pytest.raises(MismatchError, match="lexical"):
            search(files, ["fox"], embedder=LexicalEmbedder())
        own = LexicalEmbedder.from_arrays(files.embedder_arrays())
        assert search(files, ["fox"], embedder=own) == search(files, ["fox"])


def test_searching_needs_no_torch(make_bank: BankMaker) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import m3build.bank as b\n"
        "print(b.open_bank(sys.argv[1]).search('quick fox', k=1).texts[0][0])\n"
        "assert not {'torch', 'transformers', 'sentence_transformers', 'sklearn'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_bank(SHARDS)), *sys.path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (ANIMALS[0], "")


def test_hits_are_lists_by_query(bank: Path) -> None:
    with open_bank(bank) as opened:
        hits = opened.search(["fox", "lazy dog", "ζ"], k=2)
        assert opened.search("fox", k=2).ids == [hits.ids[0]]
        assert len(opened) == opened.manifest.rows == 8
    assert [len(some) for some in hits] == [len(some) for some in hits.scores]
    assert len(hits) == len(hits.ids) == len(hits.texts) == len(hits.sources) == len(hits.titles) == 3
    assert hits.ids[1][0] == hits[1][0].id
    assert hits.ids[2] == []
    assert hits.sources[0][0][0].source == "file0.txt"


def test_show_gives_the_text_its_places_and_the_kept_tokens(bank: Path) -> None:
    with open_bank(bank) as opened:
        identity = opened.search("wolves hunt", k=1).ids[0][0]
        facts = opened.show(identity[:12])
        with pytest.raises(UsageError):
            opened.show("00ff00ff00ff")
    assert (facts.id, facts.text, facts.shard, facts.row) == (identity, ANIMALS[2], 0, 2)
    assert [source.document for source in facts.sources] == ["d0", "d1"]
    assert facts.heads == ((0, 0), (0, 1), (2, 1))
    assert facts.kept_tokens(0, 0) == [0]
    assert facts.kept_tokens(0, 1) == [0, 1]
    assert facts.kept_tokens(2, 1) == []
    with pytest.raises(KeyError):
        facts.kept_tokens(1, 0)


def test_a_bank_without_memories_is_searched_and_shown(make_bank: BankMaker) -> None:
    with open_bank(make_bank([ANIMALS], memories=False)) as opened:
        facts = opened.show(opened.search("fox").ids[0][0])
    assert facts.kept is None


def test_a_bank_of_one_chunk_is_searched(make_bank: BankMaker) -> None:
    with open_bank(make_bank([["alone"]], "IVF64,SQfp16")) as opened:
        assert opened.search("alone").texts == [["alone"]]
