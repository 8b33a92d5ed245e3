"""Scores of retrieval, counted by hand; the files of questions; and baselines against their formula."""

from __future__ import annotations

import builtins
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_corpus import build

from m3build.bank import open_bank
from m3build.evaluation.baselines import K1, B, Bm25, ngram_tokens, word_tokens
from m3build.evaluation.questions import Questions, read_questions
from m3build.evaluation.retrieval import first_documents, measure, score
from m3build_formats.errors import InputError, UsageError


def given_chunks(ranked: Mapping[str, Sequence[tuple[str, ...]]]) -> Any:
    """A way to search that finds these chunks, at most as many as are asked for."""
    return lambda queries, k: [list(ranked[query][:k]) for query in queries]


def test_the_first_distinct_documents_count_not_the_first_chunks() -> None:
    chunks = [("a",), ("a",), ("b", "c"), ("a",), ("d",)]
    assert first_documents(given_chunks({"q": chunks}), ["q"]) == [["a", "b", "c", "d"]]


def test_more_chunks_are_asked_for_where_one_long_document_fills_all_places() -> None:
    chunks = [("long",)] * 500 + [(f"d{n}",) for n in range(20)]
    [documents] = first_documents(given_chunks({"q": chunks}), ["q"])
    assert documents == ["long", *(f"d{n}" for n in range(9))]


def test_hits_and_reciprocal_ranks_are_means_over_the_questions() -> None:
    documents = [(f"d{n}",) for n in range(30)]
    search = given_chunks(dict.fromkeys("wxyz", documents))
    answers = (frozenset(["d0"]), frozenset(["d4", "d7"]), frozenset(["d9"]), frozenset(["d10"]))
    scores = score(search, Questions(tuple("wxyz"), answers, 0))
    assert scores.hits == {1: 0.25, 5: 0.5, 10: 0.75}
    # The eleventh document is not looked for.
    assert scores.mrr == (1 + 1 / 5 + 1 / 10) / 4


def write_questions(directory: Path, queries: list[Any], qrels: str) -> tuple[Path, Path]:
    (directory / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    (directory / "qrels.tsv").write_text(qrels, encoding="utf-8")
    return directory / "queries.jsonl", directory / "qrels.tsv"


def test_questions_are_those_that_a_judgement_over_zero_names(tmp_path: Path) -> None:
    paths = write_questions(
        tmp_path,
        [{"_id": "1", "text": "one"}, {"_id": 2, "text": "two"}, {"_id": "3", "text": "three"}],
        "query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\t2\n2\tc\t1\n3\td\t0\n",
    )
    questions = read_questions(*paths)
    assert questions == Questions(("one", "two"), (frozenset("ab"), frozenset("c")), 1)


@pytest.mark.parametrize(
    ("queries", "qrels", "message"),
    [
        ([{"_id": "1", "text": "x"}], "1\ta\t1\n1\tb\n", "qrels.tsv, line 2"),
        ([{"_id": "1"}], "1\ta\t1\n", "queries.jsonl, line 1"),
        ([{"_id": "1", "text": "x"}, {"_id": "1", "text": "y"}], "1\ta\t1\n", "line 2: a second query"),
        ([{"_id": "1", "text": "x"}], "2\ta\t1\n", "no query has an answer"),
    ],
)
def test_files_that_are_not_as_they_should_be_are_named_with_the_line(
    tmp_path: Path, queries: list[Any], qrels: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_questions(*write_questions(tmp_path, queries, qrels))


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    queries, qrels = write_questions(tmp_path, [{"_id": "1", "text": "x"}], "1\ta\t1\n")
    for missing in ((queries, tmp_path / "none"), (tmp_path / "none", qrels)):
        with pytest.raises(UsageError, match="no such file"):
            read_questions(*missing)


def by_the_formula(tokens: Sequence[Sequence[Any]], query: Sequence[Any]) -> list[float]:
    """BM25 with Lucene's inverse document frequency, term by term."""
    average = sum(map(len, tokens)) / len(tokens)
    scores = []
    for text in tokens:
        counts, total = Counter(text), 0.0
        for term in query:
            holding = sum(term in other for other in tokens)
            if counts[term]:
                idf = math.log(1 + (len(tokens) - holding + 0.5) / (holding + 0.5))
                total += idf * counts[term] / (counts[term] + K1 * (1 - B + B * len(text) / average))
        scores.append(total)
    return scores


TEXTS = ["the cat sat on the mat", "a dog and a cat", "词元 记忆", "", "the the the end of dogs"]


@pytest.mark.parametrize("make", [word_tokens, lambda: ngram_tokens], ids=["words", "n-grams"])
@pytest.mark.parametrize("query", ["the cat", "dogs and the end the", "记忆很短", "zzz", ""])
def test_the_baselines_rank_as_their_formula_does(make: Callable[[], Any], query: str) -> None:
    pytest.importorskip("bm25s")
    tokens_of = make()
    found = Bm25(TEXTS, tokens_of).search(query, 10).tolist()
    tokens = [some.tolist() for some in tokens_of(TEXTS)]
    scores = by_the_formula(tokens, tokens_of([query])[0].tolist())
    assert sorted(found) == [n for n, value in enumerate(scores) if value > 0]
    assert [scores[n] for n in found] == pytest.approx(sorted((s for s in scores if s > 0), reverse=True))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A bank of documents with ids of their own, the first of them long."""
    directory = tmp_path_factory.mktemp("questions")
    subjects = ["harbour", "volcano", "violin", "glacier", "beehive", "compass"]
    records = [
        {
            "_id": f"d{n}",
            "text": f"The {word} stands alone. " + f"Of the {word} much is told. " * (40 if n == 0 else 2),
        }
        for n, word in enumerate(subjects)
    ]
    (directory / "corpus.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    build(directory / "corpus.jsonl", directory / "bank", tiny_llama, id_field="_id")
    return directory / "bank"


def test_a_bank_is_scored_by_its_index_by_a_scan_and_by_both_baselines(bank: Path) -> None:
    pytest.importorskip("bm25s")
    answers = (frozenset(["d1"]), frozenset(["d0"]), frozenset(["gone"]))
    questions = Questions(("a volcano stands", "much of the harbour", "the violin"), answers, 2)
    with open_bank(bank) as opened:
        report = measure(opened, questions).to_json()
    assert (report["questions"], report["unanswered"], report["missing_documents"]) == (3, 2, 1)
    for way in ("index", "exact", "bm25_words", "bm25_ngrams"):
        assert report[way] == {"hit@1": 2 / 3, "hit@5": 2 / 3, "hit@10": 2 / 3, "mrr": 2 / 3}
    assert report["notes"] == []


def test_without_the_library_the_baselines_are_left_out_and_the_report_says_so(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "bm25s":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with open_bank(bank) as opened:
        report = measure(opened, Questions(("a volcano",), (frozenset(["d1"]),), 0)).to_json()
    assert report["index"] is not None
    assert report["bm25_words"] is report["bm25_ngrams"] is None
    assert "m3build[eval]" in str(report["notes"])


def test_questions_of_another_corpus_are_refused(bank: Path) -> None:
    with open_bank(bank) as opened, pytest.raises(InputError, match="--id-field"):
        measure(opened, Questions(("x",), (frozenset(["p17"]),), 0))
