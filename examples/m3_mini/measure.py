"""``python -m examples.m3_mini.measure MODEL CORPUS OUT``: what memories are worth to the model on families
that it never saw, as the tables of its card.

CORPUS is what ``examples.m3_mini.corpus`` wrote. One bank is compiled of training documents, of the other
documents of each held-out family, and of planted facts; each family's documents under test are not in it.
Measured are, each kept in a file of OUT so that the command can be run again:

- ``m3build eval`` of each family, in short and in long contexts: a query chunk reads five references that the
  chunk before retrieved, those that hold the text under test left out;
- text beyond the context: contexts that begin far into a document, with memories of the 640 tokens before;
- planted facts (:mod:`examples.m3_mini.facts`).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import m3build
from examples.m3_mini.facts import Fact, make_facts, measure_facts
from examples.teach_memory.corpus import Retrieval, Split, Texts
from examples.teach_memory.measuring import HeldOut
from examples.teach_memory.report import interval
from m3build.model.causal import CausalModel, load_causal_model

UNDER_TEST_ONE_IN = 4
CHARACTERS_A_REFERENCE = 330
# Of each document: many documents say more than much of a few.
CHARACTERS_UNDER_TEST = 4000
BEYOND = ("plain", "bos", "earlier", "other", "text")
BEYOND_START, BEYOND_CONTEXT = 640, 257
BEYOND_WORDS = {
    "plain": "plain context",
    "bos": "after the reference BOS",
    "earlier": "memories of the 640 tokens before",
    "other": "memories of another document",
    "text": "the 640 tokens before in the context",
    "gain: earlier": "gain by memories of what came before",
    "gain: other": "gain by memories of another document",
    "gain: text": "gain by the text in the context",
    "gain: earlier over other": "gain of the former over another document's",
}
ROWS = {
    "none": "no memories",
    "quantized": "memories as stored",
    "exact": "the same, unquantized",
    "random": "memories of random references",
    "text": "the references as text in the context",
    "dense": "all their keys and values",
}


@click.command(context_settings={"show_default": True})
@click.argument("model")
@click.argument("corpus", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--control", metavar="DIR", help="A model trained on the same text without memories.")
@click.option("--references", default=33_500, help="About how many references the bank is to have.")
@click.option("--tokens", default=30_000, help="Tokens under test of each family, at most.")
@click.option("--windows", default="256", help="Tokens of a context.")
@click.option("--facts", default=200, help="Planted facts.")
@click.option("--device", default="auto", help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", help="auto, float32 or bfloat16.")
def main(
    model: str,
    corpus: Path,
    out: Path,
    control: str | None,
    references: int,
    tokens: int,
    windows: str,
    facts: int,
    device: str,
    dtype: str,
) -> None:
    """Compile the bank, measure, and write figures.json and tables.md."""
    out.mkdir(parents=True, exist_ok=True)
    planted = make_facts(facts)
    families = write_sources(corpus, out, references * CHARACTERS_A_REFERENCE, planted)
    bank = out / "bank"
    m3build.compile(out / "bank.jsonl", bank, model=model, id_field="id", device=device, dtype=dtype)
    with m3build.open_bank(bank) as opened:
        size = opened.files.rows
    whole = load_causal_model(model, device=device, dtype=dtype)

    def evaluated(family: str, window: int) -> Mapping[str, Any]:
        return m3build.evaluate(
            bank,
            text=out / f"{family}.jsonl",
            id_field="id",
            model=model,
            control=control,
            window=window,
            tokens=tokens,
            device=device,
            store=False,
        ).results

    figures = {
        "references": size,
        "windows": {
            window: {
                family: kept(out / f"{family}-{window}.json", partial(evaluated, family, window))
                for family in families
            }
            for window in map(int, windows.split(","))
        },
        "beyond": {
            family: kept(
                out / f"{family}-beyond.json", partial(measure_beyond, whole, out / f"{family}.jsonl")
            )
            for family in families
        },
        "facts": kept(out / "facts.json", partial(measure_facts, whole, bank, planted)),
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (out / "tables.md").write_text("\n".join(tables(figures)) + "\n", encoding="utf-8")
    click.echo((out / "tables.md").read_text(encoding="utf-8"))


def kept(path: Path, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What was measured, from its file where it is known."""
    if not path.exists():
        path.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measure_beyond(model: CausalModel, under_test: Path) -> Mapping[str, Any]:
    """Losses in contexts of 256 tokens from a document's token 640 on, with and without memories of what came
    before (see :mod:`examples.teach_memory.measuring`)."""
    ids = [
        model.tokenizer.encode(document["text"], add_special_tokens=False, verbose=False)
        for document in documents(under_test)
    ]
    none = Texts(np.zeros(0, np.int32), np.zeros(0, np.int64))
    split = Split(none, ids, none, [])
    return HeldOut(model, split, Retrieval(split, model), BEYOND_CONTEXT, start=BEYOND_START).report(BEYOND)


def write_sources(corpus: Path, out: Path, characters: int, facts: list[Fact]) -> list[str]:
    """Write bank.jsonl, of at most so many characters, and a file of documents under test for each held-out
    family; the families."""
    under_test: dict[str, list[dict[str, Any]]] = defaultdict(list)
    others: list[dict[str, Any]] = []
    for document in documents(corpus / "held-out.jsonl"):
        is_tested = hashed(document["id"]) % UNDER_TEST_ONE_IN == 0
        if is_tested:
            document["text"] = document["text"][:CHARACTERS_UNDER_TEST]
        (under_test[document["family"]] if is_tested else others).append(document)
    planted = [{"id": fact.function, "text": fact.document, "family": "planted"} for fact in facts]
    left = characters - sum(len(document["text"]) for document in [*others, *planted])
    training = []
    for document in sorted(documents(corpus / "train.jsonl"), key=lambda document: hashed(document["id"])):
        if len(document["text"]) <= left:
            training.append(document)
            left -= len(document["text"])
    write(out / "bank.jsonl", [*others, *planted, *training])
    for family, tested in under_test.items():
        write(out / f"{family}.jsonl", tested)
    return sorted(under_test)


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a corpus file."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Records as JSON lines. Translations of a page share its id, and are in families of their own."""
    named = ({**record, "id": f"{record['family']}/{record['id']}"} for record in records)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in named)
    path.write_text(text, encoding="utf-8")


def hashed(identity: str) -> int:
    """A number that follows from an id alone."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8])


def tables(figures: Mapping[str, Any]) -> Iterator[str]:
    """The tables of the card."""
    yield f"A bank of {figures['references']:,} references. Nats a token; 95 % intervals over documents."
    for window, families in figures["windows"].items():
        yield ""
        yield f"| contexts of {window} tokens | " + " | ".join(families) + " |"
        yield "| --- |" + " --- |" * len(families)
        for name, words in ROWS.items():
            cells = (
                f"{found['loss'][name]:.4f}"
                + ("" if name == "none" else f"; gain {interval(found['gain'][name])}")
                for found in families.values()
            )
            yield f"| {words} | " + " | ".join(cells) + " |"
        yield row("gain over random references", (found["gain_over_random"] for found in families.values()))
        controls = [found["control"] for found in families.values() if "control" in found]
        if controls:
            losses = (f"{control['loss']:.4f}" for control in controls)
            yield "| control, without memories | " + " | ".join(losses) + " |"
            yield row("gain over the control", (control["gain_over"] for control in controls))
        cells = (
            f"{found['none']['plain']:.4f}; {found['none']['reference_bos']:.4f}"
            for found in families.values()
        )
        yield "| without memories: plain context; after the reference BOS | " + " | ".join(cells) + " |"
        cells = (f"{found['documents']:,}; {found['tokens']:,}" for found in families.values())
        yield "| documents; tokens predicted | " + " | ".join(cells) + " |"
    beyond = figures["beyond"]
    yield ""
    yield (
        f"Text beyond the context: contexts of {BEYOND_CONTEXT - 1} tokens from token {BEYOND_START} of a"
        " document on; memories of the references before it, unquantized."
    )
    yield ""
    yield "| | " + " | ".join(beyond) + " |"
    yield "| --- |" + " --- |" * len(beyond)
    for name in next(iter(beyond.values())):
        yield row(BEYOND_WORDS.get(name, name), (found[name] for found in beyond.values()))
    cells = (f"{found['plain']['documents']:,}" for found in beyond.values())
    yield "| documents | " + " | ".join(cells) + " |"
    facts = figures["facts"]
    yield ""
    yield (
        f"{facts['facts']} planted facts, made-up functions with made-up return values, each told in one"
        f" document of the same bank; of {share(facts['retrieved'])} of them the reference that tells it was"
        " among those read."
    )
    yield ""
    yield "| | completed | nats a token of the value |"
    yield "| --- | --- | --- |"
    for name, words in (
        ("none", "no memory"),
        ("memories", "memories"),
        ("text", "the document in the context"),
    ):
        yield f"| {words} | {share(facts[name]['completed'])} | {interval(facts[name]['loss'])} |"


def row(words: str, found: Iterable[Mapping[str, float | None]]) -> str:
    """A row of means with intervals."""
    return f"| {words} | " + " | ".join(map(interval, found)) + " |"


def share(found: Mapping[str, float | None]) -> str:
    """A share in per cent with its interval."""
    mean, low, high = (100 * (found[key] or 0.0) for key in ("mean", "low", "high"))
    return f"{mean:.1f} % ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
