"""Whether the default embedder and index find what exact BM25 of character n-grams finds, in many scripts.

    python tests/benchmarks/known_items.py NAME=PATH [NAME=PATH …] [--sentences 5000] [--queries 500]
        [--embedder lexical] [--index auto]

There are few question sets beyond English, so questions are made from the text itself. The sentences of the
files under each PATH (any kind that m3build reads) are the passages, up to ``--sentences`` of them, drawn by
a fixed seed. A question is made of one passage so: of its words (runs of two characters where a script has no
spaces) half are taken at random, in random order, and half as many words of another passage are mixed in. So
no question is a part of its passage, and a third of it points elsewhere.

Prints hit@1 and hit@10 as a bank finds them (index, candidates, re-ranking) and of BM25 over all n-grams of
all passages (bm25s), and exits 1 where the former is lower by more than 0.02.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from retrieval import Questions, as_a_bank, report

from m3build.corpus import SourceOptions, discover, read_range, split
from m3build.embed import make_embedder
from m3build.embed.ngrams import IDEOGRAPHS, UNSPACED
from m3build.evaluation.baselines import Bm25, ngram_tokens
from m3build.records import Document

ALLOWED = 0.02
LENGTHS = (12, 300)
_END = re.compile(r"(?<=[.!?。！？؟।])\s*|\n+")
_RANGES = "".join(f"{chr(start)}-{chr(end - 1)}" for start, end in (*IDEOGRAPHS, *UNSPACED))
_WORD = re.compile(f"[{_RANGES}]{{1,2}}|[^\\W{_RANGES}]+")


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("sets", nargs="+", metavar="NAME=PATH")
    options.add_argument("--sentences", type=int, default=5000)
    options.add_argument("--queries", type=int, default=500)
    options.add_argument("--embedder", default="lexical")
    options.add_argument("--index", default="auto")
    given = options.parse_args()
    worst = 0.0
    for name, path in (item.split("=", 1) for item in given.sets):
        passages = draw(Path(path), given.sentences)
        questions = known_items(passages, given.queries)
        print(f"{name}: {len(passages)} sentences, {len(questions.queries)} questions", flush=True)
        embedder = make_embedder(given.embedder)
        embedder.fit(passages)
        ranking, facts = as_a_bank(embedder, passages, questions.queries, given.index)
        owners = list(range(len(passages)))
        reached = report(f"{embedder.name}, {facts}", ranking, owners, questions)
        exact = Bm25(passages, ngram_tokens)
        found = (exact.search(query, 100).tolist() for query in questions.queries)
        wanted = report("every sentence, BM25 of n-grams (bm25s)", found, owners, questions)
        worst = max(worst, *(w - r for r, w in zip(reached, wanted, strict=True)))
    print(f"at most {worst:.4f} below exact BM25 of n-grams, allowed {ALLOWED}")
    return int(worst > ALLOWED)


def draw(path: Path, number: int) -> list[str]:
    """Distinct sentences of the files under a path, a random ``number`` of them."""
    every = list(dict.fromkeys(sentences(path)))
    return random.Random(0).sample(every, min(number, len(every)))


def sentences(path: Path) -> Iterator[str]:
    options = SourceOptions()
    for file in discover([str(path)], lambda _: None):
        for part in split(file, options):
            for item in read_range(part, options):
                if isinstance(item, Document):
                    for piece in _END.split(item.text):
                        text = " ".join(piece.split())
                        if LENGTHS[0] <= len(text) <= LENGTHS[1] and len(_WORD.findall(text)) >= 4:
                            yield text


def known_items(passages: list[str], number: int) -> Questions:
    """Questions of some passages (see the module)."""
    drawn = random.Random(1)
    answers = drawn.sample(range(len(passages)), min(number, len(passages)))
    queries = []
    for answer in answers:
        words = _WORD.findall(passages[answer])
        other = _WORD.findall(passages[drawn.randrange(len(passages))])
        half = -(-len(words) // 2)
        chosen = drawn.sample(words, half) + drawn.sample(other, min(half // 2, len(other)))
        drawn.shuffle(chosen)
        queries.append(" ".join(chosen))
    return Questions(queries, answers, passages)


if __name__ == "__main__":
    sys.exit(main())
