"""How well and how fast the embedders find the passage that answers a question.

    M3BUILD_TEST_DATA=DIR python tests/benchmarks/retrieval.py [--sets xquad_en xquad_zh] [--embedder lexical]
        [--index auto IVF1024,SQfp16] [--noise PATH …] [--no-speed]

For each question set of M3BUILD_TEST_DATA/qa, once by paragraph and once by chunk (references of at most 128
tokens of M3BUILD_TEST_DATA/models/stories260K), prints hit@1 and hit@10 of the first distinct paragraphs: as
a bank finds them (index, candidates, re-ranking), by the exact score of every passage, and by word BM25
(bm25s, if installed; hopeless for text without spaces). ``--noise`` adds the text files under a path as
passages that answer nothing, so that a small set is searched among many. Then the speed of the lexical
embedder beside scikit-learn (if installed) doing the same, HashingVectorizer and SparseRandomProjection: CPU
time, best of three. Exits 1 if the lexical embedder misses FIGURES on the paragraphs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from m3build.embed import Embedder, make_embedder
from m3build.embed.lexical import LexicalEmbedder
from m3build.embed.ngrams import batches, count_ngrams
from m3build.index import PartedIndex, build_part, choose_spec, measure_recall, open_part, sample_size, train

FIGURES = {"xquad_en": (0.924, 0.996), "xquad_zh": (0.918, 0.986)}
PART_ROWS = 16_384
NOISE_CHARACTERS = 300


@dataclass(frozen=True)
class Questions:
    """Questions with the number of the paragraph that answers each, and the paragraphs."""

    queries: list[str]
    answers: list[int]
    paragraphs: list[str]


Ranking = Iterator[list[int]]


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--sets", nargs="+", default=list(FIGURES))
    options.add_argument("--embedder", default="lexical")
    options.add_argument("--index", nargs="+", default=["auto"])
    options.add_argument("--noise", nargs="*", type=Path, default=[])
    options.add_argument("--no-speed", action="store_true")
    given = options.parse_args()
    if "M3BUILD_TEST_DATA" not in os.environ:
        print("set M3BUILD_TEST_DATA to a directory with qa/ and models/stories260K", file=sys.stderr)
        return 2
    data = Path(os.environ["M3BUILD_TEST_DATA"])
    noise = list(dict.fromkeys(piece for path in given.noise for piece in noise_pieces(path)))
    missed = False
    for name in given.sets:
        questions = load(data / "qa" / name)
        for unit, (passages, owners) in {
            "paragraphs": (questions.paragraphs, list(range(len(questions.paragraphs)))),
            "chunks": chunks(questions.paragraphs, data / "models" / "stories260K"),
        }.items():
            every = [*passages, *noise]
            print(f"{name}, {len(every)} {unit}, {len(questions.queries)} questions", flush=True)
            embedder = make_embedder(given.embedder)
            embedder.fit(every)
            for index in given.index:
                ranking, facts = as_a_bank(embedder, every, questions.queries, index)
                reached = report(f"{embedder.name}, {facts}", ranking, owners, questions)
                figures = FIGURES.get(name, (0.0, 0.0))
                if unit == "paragraphs" and not noise and given.embedder == "lexical":
                    missed |= any(round(r, 3) < f for r, f in zip(reached, figures, strict=True))
            if embedder.candidates and not noise:
                report(
                    "every passage by the exact score",
                    exactly(embedder, every, questions.queries),
                    owners,
                    questions,
                )
            if any(" " in passage for passage in passages):
                report_words(every, owners, questions)
    if not given.no_speed:
        speed([text for name in given.sets for text in load(data / "qa" / name).paragraphs])
    if missed:
        print(f"the lexical embedder is under the figures to reach: {FIGURES}", file=sys.stderr)
    return int(missed)


def load(directory: Path) -> Questions:
    """A question set in BEIR layout, one answering paragraph a question."""
    corpus = [json.loads(line) for line in (directory / "corpus.jsonl").read_text("utf-8").splitlines()]
    queries = [json.loads(line) for line in (directory / "queries.jsonl").read_text("utf-8").splitlines()]
    numbers = {document["_id"]: number for number, document in enumerate(corpus)}
    lines = (directory / "qrels.tsv").read_text("utf-8").splitlines()[1:]
    answers = {query: numbers[document] for query, document, _ in (line.split("\t") for line in lines)}
    return Questions(
        [query["text"] for query in queries],
        [answers[query["_id"]] for query in queries],
        [document["text"] for document in corpus],
    )


def chunks(paragraphs: Sequence[str], model: Path) -> tuple[list[str], list[int]]:
    """The references of the paragraphs and the paragraph of each."""
    from tokenizers import Tokenizer

    from m3build.chunking import Chunker
    from m3build.records import Document

    chunker = Chunker(Tokenizer.from_file(str(model / "tokenizer.json")))
    documents = [Document(str(number), "-", number, text) for number, text in enumerate(paragraphs)]
    cut = [
        (chunk.reference_text, int(document.id))
        for document, some in chunker.cut_many(documents)
        for chunk in some
    ]
    return [text for text, _ in cut], [owner for _, owner in cut]


def noise_pieces(path: Path) -> Iterator[str]:
    """Pieces of the text files under a path, in sorted order."""
    for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
        text = file.read_text("utf-8", errors="replace")
        for start in range(0, len(text), NOISE_CHARACTERS):
            yield text[start : start + NOISE_CHARACTERS]


def as_a_bank(embedder: Embedder, passages: list[str], queries: list[str], spec: str) -> tuple[Ranking, str]:
    """Rankings by index and re-ranking, and what the index is."""
    vectors = np.concatenate([embedder.embed(passages[n : n + 512]) for n in range(0, len(passages), 512)])
    asked = embedder.embed_queries(queries)
    wanted = sample_size(choose_spec(spec, len(vectors)))
    drawn = np.random.default_rng(0).permutation(len(vectors))[:wanted]
    state = train(spec, len(vectors), vectors[drawn], asked[::5])
    arrays = [vectors[start : start + PART_ROWS] for start in range(0, len(vectors), PART_ROWS)]
    parts = [open_part(state, build_part(state, [array]), len(array)) for array in arrays]
    index = PartedIndex(state, [lambda part=part: part for part in parts])  # type: ignore[misc]
    recall = measure_recall(index, [[array] for array in arrays], asked[:256])
    start = time.perf_counter()
    found = index.search(asked, max(embedder.candidates, 100))
    milliseconds = (time.perf_counter() - start) / len(queries) * 1e3
    probes = f", {state.probes} lists probed" if state.probes else ""

    def ranking() -> Ranking:
        for number, query in enumerate(queries):
            kept = found.rows[number] >= 0
            rows = found.parts[number][kept] * PART_ROWS + found.rows[number][kept]
            if embedder.candidates:
                scores = embedder.rerank(query, [passages[row] for row in rows])
                rows = rows[np.argsort(-scores, kind="stable")]
            yield rows.tolist()

    return ranking(), f"{state.spec}{probes}, recall@10 {recall:.3f}, {milliseconds:.2f} ms a query"


def exactly(embedder: Embedder, passages: list[str], queries: list[str]) -> Ranking:
    """Rankings of all passages by the embedder's own score."""
    for query in queries:
        yield np.argsort(-embedder.rerank(query, passages), kind="stable").tolist()


def report(name: str, ranking: Ranking, owners: Sequence[int], questions: Questions) -> tuple[float, float]:
    """Print and return hit@1 and hit@10 over the first distinct paragraphs. The rest are noise."""
    hits = {1: 0, 10: 0}
    for rows, answer in zip(ranking, questions.answers, strict=True):
        distinct = dict.fromkeys(owners[row] if row < len(owners) else -row for row in rows)
        for k in hits:
            hits[k] += answer in islice(distinct, k)
    number = len(questions.queries)
    print(f"  hit@1 {hits[1] / number:.4f}  hit@10 {hits[10] / number:.4f}  {name}", flush=True)
    return hits[1] / number, hits[10] / number


def report_words(passages: list[str], owners: Sequence[int], questions: Questions) -> None:
    try:
        import bm25s
    except ImportError:
        return
    words = bm25s.BM25()
    words.index(bm25s.tokenize(passages, stopwords=None, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(questions.queries, stopwords=None, show_progress=False)
    rows, _ = words.retrieve(asked, k=min(100, len(passages)), show_progress=False)
    report("words, BM25 (bm25s)", iter(rows.tolist()), owners, questions)


def speed(texts: list[str]) -> None:
    """Megabytes of UTF-8 a second of CPU time, for pieces of the size of a reference."""
    pieces = [text[start : start + 500] for text in texts for start in range(0, len(text), 500)]
    size = sum(len(piece.encode()) for piece in pieces) / 1e6
    embedder = LexicalEmbedder()
    embedder.fit(pieces)

    def measure(name: str, work: Callable[[], object]) -> None:
        seconds = []
        for _ in range(3):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        print(f"  {size / min(seconds):6.2f} MB/s  {name}", flush=True)

    print(f"{len(pieces)} pieces, {size:.2f} MB")
    measure("count n-grams", lambda: [count_ngrams(group) for group in batches(pieces)])
    measure("fit", lambda: LexicalEmbedder().fit(pieces))
    measure("embed (count, weigh, project)", lambda: embedder.embed(pieces))
    measure("re-rank", lambda: embedder.rerank("How many points did the defence give up? 防守", pieces))
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.random_projection import SparseRandomProjection
    except ImportError:
        return
    hashing = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), alternate_sign=False, norm=None)
    counted = hashing.transform(pieces)
    projection = SparseRandomProjection(
        n_components=embedder.dim, density=4 / embedder.dim, random_state=0
    ).fit(counted)
    measure("scikit-learn: HashingVectorizer, char_wb 3 to 5", lambda: hashing.transform(pieces))
    measure(
        "scikit-learn: the same and SparseRandomProjection",
        lambda: projection.transform(hashing.transform(pieces)),
    )


if __name__ == "__main__":
    sys.exit(main())
