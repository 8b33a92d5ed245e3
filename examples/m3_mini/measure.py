"""``python -m examples.m3_mini.measure MODEL CORPUS OUT``: what memories are worth to the model on families
that it never saw, as the tables of its card.

CORPUS is what ``examples.m3_mini.corpus`` wrote. One bank is compiled of training documents, of the other
documents of each held-out family, and of planted facts; each family's documents under test are not in it.
``m3build eval`` then measures each family: a query chunk reads five references that the chunk before
retrieved, those that hold the text under test left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import m3build
from examples.m3_mini.facts import Fact, make_facts, measure_facts
from m3build.model.causal import load_causal_model

UNDER_TEST_ONE_IN = 4
CHARACTERS_A_REFERENCE = 330
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
@click.option("--references", default=100_000, help="About how many references the bank is to have.")
@click.option("--tokens", default=100_000, help="Tokens under test of each family, at most.")
@click.option("--facts", default=200, help="Planted facts.")
@click.option("--device", default="auto", help="auto, cpu, cuda or mps.")
def main(
    model: str,
    corpus: Path,
    out: Path,
    references: int,
    tokens: int,
    facts: int,
    device: str,
) -> None:
    """Compile the bank, measure, and write figures.json and tables.md."""
    out.mkdir(parents=True, exist_ok=True)
    planted = make_facts(facts)
    families = write_sources(corpus, out, references * CHARACTERS_A_REFERENCE, planted)
    bank = out / "bank"
    m3build.compile(out / "bank.jsonl", bank, model=model, id_field="id", device=device)
    with m3build.open_bank(bank) as opened:
        size = opened.files.rows
    figures: dict[str, Any] = {"references": size, "families": {}}
    for family in families:
        under_test = out / f"{family}.jsonl"
        found = m3build.evaluate(
            bank, text=under_test, id_field="id", model=model, tokens=tokens, device=device, store=False
        )
        figures["families"][family] = found.results
    figures["facts"] = measure_facts(load_causal_model(model, device=device), bank, planted)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (out / "tables.md").write_text("\n".join(tables(figures)) + "\n", encoding="utf-8")
    click.echo((out / "tables.md").read_text(encoding="utf-8"))


def write_sources(corpus: Path, out: Path, characters: int, facts: list[Fact]) -> list[str]:
    """Write bank.jsonl, of at most so many characters, and a file of documents under test for each held-out
    family; the families."""
    under_test: dict[str, list[dict[str, Any]]] = defaultdict(list)
    others: list[dict[str, Any]] = []
    for document in documents(corpus / "held-out.jsonl"):
        is_tested = hashed(document["id"]) % UNDER_TEST_ONE_IN == 0
        (under_test[document["family"]] if is_tested else others).append(document)
    planted = [{"id": f"planted/{fact.function}", "text": fact.document} for fact in facts]
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
    """Records as JSON lines."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")


def hashed(identity: str) -> int:
    """A number that follows from an id alone."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8])


def tables(figures: Mapping[str, Any]) -> Iterator[str]:
    """The tables of the card."""
    families = figures["families"]
    yield f"A bank of {figures['references']:,} references. Nats a token; 95 % intervals over documents."
    yield ""
    yield "| | " + " | ".join(families) + " |"
    yield "| --- |" + " --- |" * len(families)
    for name, words in ROWS.items():
        cells = (
            f"{found['loss'][name]:.4f}"
            + ("" if name == "none" else f"; gain {interval(found['gain'][name])}")
            for found in families.values()
        )
        yield f"| {words} | " + " | ".join(cells) + " |"
    cells = (interval(found["gain_over_random"]) for found in families.values())
    yield "| gain over random references | " + " | ".join(cells) + " |"
    cells = (
        f"{found['none']['plain']:.4f}; {found['none']['reference_bos']:.4f}" for found in families.values()
    )
    yield "| without memories: plain context; after the reference BOS | " + " | ".join(cells) + " |"
    cells = (f"{found['documents']:,}; {found['tokens']:,}" for found in families.values())
    yield "| documents; tokens predicted | " + " | ".join(cells) + " |"
    facts = figures["facts"]
    yield ""
    yield (
        f"{facts['facts']} planted facts in the same bank; of {share(facts['retrieved'])} of them the"
        " reference that tells it was among those read."
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


def interval(found: Mapping[str, float | None]) -> str:
    """A mean with its interval, where there is one."""
    mean = f"{found['mean']:.4f}"
    return mean if found["low"] is None else f"{mean} ({found['low']:.4f} to {found['high']:.4f})"


def share(found: Mapping[str, float | None]) -> str:
    """A share in per cent with its interval."""
    mean, low, high = (100 * (found[key] or 0.0) for key in ("mean", "low", "high"))
    return f"{mean:.1f} % ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
