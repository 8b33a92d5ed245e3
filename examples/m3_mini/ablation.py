"""``python -m examples.m3_mini.ablation MODEL TAUGHT CORPUS.jsonl OUT``: what the choices of m3-mini give,
each taught on a small budget.

MODEL is the model before training and TAUGHT the directory that ``examples.teach_memory`` left: every variant
starts from its ``checkpoint-warm-up``, sees the same batches, and differs from the first in one choice. It is
then measured on held-out documents of training families, with what it was taught with. Finished variants are
kept in OUT, so that the command can be run again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from examples.teach_memory.batches import Batches
from examples.teach_memory.corpus import Retrieval, read_corpus
from examples.teach_memory.measuring import HeldOut
from examples.teach_memory.report import interval
from examples.teach_memory.training import Schedule, Stage, restore, train
from m3build.evaluation.bootstrap import mean_per_token
from m3build.model.causal import load_causal_model
from m3build.model.shape import ShapeRequest

MEASURED = ("plain", "bos", "earlier", "retrieved", "random", "passage")
GAINS = ("earlier", "retrieved", "random", "passage")
# From what each differs, and how, by name.
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "32 tokens a head, calibrated heads, Memory³'s selection": {},
    "8 tokens a head": {"sparse_tokens": "8"},
    "16 tokens a head": {"sparse_tokens": "16"},
    "first half of the layers": {"memory_layers": "0-3", "memory_heads": ""},
    "selection: value-norm": {"selection": "value-norm"},
    "selection: random": {"selection": "random"},
    "selection: first": {"selection": "first"},
    "selection: last": {"selection": "last"},
}


@click.command(context_settings={"show_default": True})
@click.argument("model")
@click.argument("taught", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("corpus")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--steps", default=40, help="Steps of each variant.")
@click.option("--rate", default=5e-4, help="Peak learning rate.")
@click.option("--rows", default=16, help="Contexts in a step.")
@click.option("--context", default=257, help="Tokens of a context, BOS included.")
@click.option("--documents", default=48, help="Held-out documents measured.")
@click.option("--threads", type=int, help="Threads on a CPU.  [default: torch's own number]")
def main(
    model: str,
    taught: Path,
    corpus: str,
    out: Path,
    steps: int,
    rate: float,
    rows: int,
    context: int,
    documents: int,
    threads: int | None,
) -> None:
    """Teach and measure all variants, and write OUT/table.md."""
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    given = load_causal_model(model, dtype="float32")
    split = read_corpus(given, [corpus], taught)
    retrieval = Retrieval(split, given)
    calibrated = json.loads((taught / "calibration.json").read_text(encoding="utf-8"))["recommended"]
    found: dict[str, dict[str, Any]] = {}
    for number, (name, differs) in enumerate(VARIANTS.items()):
        kept = out / f"{number}.json"
        if not kept.exists():
            own = {**calibrated, "sparse_tokens": "32", "selection": given.shape.selection, **differs}
            variant = given.shaped(
                ShapeRequest(
                    **{option: value for option, value in own.items() if value},
                    reference_tokens=given.shape.reference_tokens,
                    reference_bos=given.shape.reference_bos,
                )
            )
            restore(variant, taught / "checkpoint-warm-up")
            batches = Batches(variant, split, retrieval, rows, context, 0, steps=steps)
            stage = Stage(name, Schedule(steps, rate), batches.with_memory, steps)
            # Of this variant alone: another must never go on from it.
            checkpoint = out / f"checkpoint-{number}"
            train(variant, stage, checkpoint, lambda entry: click.echo(json.dumps(entry)), dict)
            watched = HeldOut(variant, split, retrieval, context, documents)
            sums = {condition: watched.losses(condition) for condition in MEASURED}
            entry = {"name": name, "counts": sums["plain"][1], "sums": {of: s for of, (s, _) in sums.items()}}
            kept.write_text(json.dumps(entry) + "\n", encoding="utf-8")
            shutil.rmtree(checkpoint)
        found[name] = json.loads(kept.read_text(encoding="utf-8"))
    (out / "table.md").write_text("\n".join(table(found, steps)) + "\n", encoding="utf-8")
    click.echo((out / "table.md").read_text(encoding="utf-8"))


def table(found: Mapping[str, Mapping[str, Any]], steps: int) -> Iterator[str]:
    """Losses and gains of all variants as lines of Markdown."""
    (first, *_) = found.values()
    tokens = sum(first["counts"])
    yield (
        f"Each variant was taught for {steps} steps from the same checkpoint; {len(first['counts'])} held-out"
        f" documents of training families, {tokens:,} tokens; gains over the better of plain context and"
        " context after the reference BOS, unquantized, with 95 % intervals over documents."
    )
    yield ""
    yield "| | no memories | " + " | ".join(GAINS) + " |"
    yield "| --- | --- |" + " --- |" * len(GAINS)
    for name, variant in found.items():
        sums, counts = variant["sums"], variant["counts"]
        none = min(("plain", "bos"), key=lambda condition: sum(sums[condition]))
        cells = []
        for condition in GAINS:
            gained = [without - own for own, without in zip(sums[condition], sums[none], strict=True)]
            cells.append(interval(mean_per_token(gained, counts).to_json()))
        yield f"| {name} | {sum(sums[none]) / tokens:.4f} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
