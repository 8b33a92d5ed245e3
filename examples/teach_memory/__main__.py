"""``python -m examples.teach_memory --model DIR --corpus SOURCE --out DIR``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import torch

from examples.teach_memory.batches import Batches
from examples.teach_memory.corpus import Retrieval, Split, read_corpus
from examples.teach_memory.measuring import HeldOut
from examples.teach_memory.report import CARD, LOG, Figures, draw, write_card
from examples.teach_memory.training import Schedule, Stage, restore, train
from m3build.calibration import Repeats, calibrate, cut_passages, repeat_passages
from m3build.calibration.reading_loss import losses_in_context
from m3build.calibration.run import PIECE_TOKENS
from m3build.model.causal import CausalModel, load_causal_model
from m3build.model.memory3_file import MEMORY3_KEYS, write_memory3
from m3build.model.shape import ShapeRequest
from m3build_formats.errors import GateError, M3Error

WATCHED = ("plain", "bos", "earlier", "other")
WATCHED_DOCUMENTS = 32
CALIBRATED = 64
CALIBRATION = "calibration.json"


@click.command(context_settings={"show_default": True})
@click.option("--model", "name", required=True, metavar="DIR", help="A transformers directory or hub id.")
@click.option("--corpus", multiple=True, required=True, metavar="SOURCE", help="Text, as compile reads it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the taught model goes.")
@click.option("--warm-up-steps", default=2000, help="Steps of stage 1, where it is needed.")
@click.option("--warm-up-rate", default=1e-3, help="Peak learning rate of stage 1.")
@click.option("--steps", default=1000, help="Steps of stage 2.")
@click.option("--rate", default=5e-4, help="Peak learning rate of stage 2.")
@click.option("--rows", default=16, help="Contexts in a step.")
@click.option("--context", default=257, help="Tokens of a context, BOS included.")
@click.option("--memory-layers", metavar="LIST", help="Layers that hold memory.  [default: by calibration]")
@click.option("--sparse-tokens", default="32", metavar="N|all", help="Tokens kept a head.")
@click.option("--control", is_flag=True, help="Stage 2 on the same contexts with nothing to read.")
@click.option("--every", default=100, help="Steps from one measurement and checkpoint to the next.")
@click.option("--documents", type=int, help="Held-out documents in the card's figures.  [default: all]")
@click.option("--seed", default=0)
@click.option("--device", default="auto", help="auto, cpu, cuda or mps.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Of the passes; bfloat16 where that is fast. Weights are trained in float32.",
)
@click.option("--threads", type=int, help="Threads on a CPU.  [default: torch's own number]")
@click.option("--force", is_flag=True, help="Go on to stage 2 even if the model cannot read anything yet.")
def main(
    name: str,
    corpus: tuple[str, ...],
    out: Path,
    warm_up_steps: int,
    warm_up_rate: float,
    steps: int,
    rate: float,
    rows: int,
    context: int,
    memory_layers: str | None,
    sparse_tokens: str,
    control: bool,
    every: int,
    documents: int | None,
    seed: int,
    device: str,
    dtype: str,
    threads: int | None,
    force: bool,
) -> None:
    """Teach a model to read explicit memories, in the two stages of Memory³ §3.6. Run it again to go on after
    an interruption."""
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    mixed = dtype == "bfloat16"
    model = load_causal_model(name, device=device, dtype="float32")
    split = read_corpus(model, corpus, out)
    retrieval = Retrieval(split, model)

    def log(entry: dict[str, Any]) -> None:
        with (out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        click.echo(json.dumps(entry), err=True)

    repeats, texts = held_out_passages(split)
    where: dict[str, Any] = {"memory_layers": memory_layers}
    if memory_layers is None:
        # Stage 1, unless memories are already worth something to the model.
        warm_up, known = out / "checkpoint-warm-up", out / CALIBRATION
        if not known.exists():
            found = None if warm_up.exists() else calibrate(model, repeats, texts)
            if found is None or found.recommended is None:
                batches = Batches(model, split, retrieval, rows, context, seed, warm_up_steps)
                schedule = Schedule(warm_up_steps, warm_up_rate)
                stage = Stage("warm-up", schedule, batches.warm_up, every, muon=True, mixed=mixed)
                train(model, stage, warm_up, log, lambda: copying(model, repeats))
                found = calibrate(model, repeats, texts)
            if found.recommended is None and not force:
                raise GateError(
                    "stage 2 would teach this model to ignore memories: it neither copies within its context"
                    f" (new passages cost {found.first_loss:.2f} nats a token, repeated ones"
                    f" {found.repeated_loss:.2f}) nor gains by the memory of what came before. Raise"
                    " --warm-up-steps, or --force it."
                )
            known.write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
        elif warm_up.exists():
            restore(model, warm_up)
        where = json.loads(known.read_text(encoding="utf-8"))["recommended"] or {}

    # Stage 2, with memory where it was found to be of use.
    def shaped(model: CausalModel) -> CausalModel:
        own = model.shape
        return model.shaped(
            ShapeRequest(
                **where,
                sparse_tokens=sparse_tokens,
                reference_tokens=own.reference_tokens,
                reference_bos=own.reference_bos,
                selection=own.selection,
                continuations=own.continuations,
            )
        )

    model = shaped(model)
    watched = HeldOut(model, split, retrieval, context, WATCHED_DOCUMENTS)
    batches = Batches(model, split, retrieval, rows, context, seed, steps=steps, memory=not control)
    stage = Stage(
        "control" if control else "with memory",
        Schedule(steps, rate),
        batches.with_memory,
        every,
        mixed=mixed,
    )
    train(model, stage, out / "checkpoint", log, lambda: watched.means(WATCHED))
    model.model.save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    record = model.shape.record()
    write_memory3(out, {key: record[key] for key in MEMORY3_KEYS if key in record})
    draw(out)

    # The figures, beside those of the model as it was given.
    given = shaped(load_causal_model(name, device=device, dtype="float32"))
    figures = [
        figures_of(out / name, HeldOut(which, split, retrieval, context, documents))
        for name, which in (("given.json", given), ("figures.json", model))
    ]
    copied = [copying(which, repeats) for which in (given, model)]
    said = [
        f"    python -m examples.teach_memory {shlex.join(sys.argv[1:])}",
        "",
        f"New passages cost the model as given {copied[0]['new']:.3f} nats a token, what is copied of them"
        f" later in the context {copied[0]['repeated']:.3f}; after teaching {copied[1]['new']:.3f} and"
        f" {copied[1]['repeated']:.3f}.",
    ]
    write_card(out, model, said, *figures)
    click.echo((out / CARD).read_text(encoding="utf-8"))


def figures_of(path: Path, held_out: HeldOut) -> Figures:
    """The figures of held-out documents, measured once and kept in a file."""
    if not path.exists():
        path.write_text(json.dumps(held_out.report(), indent=2) + "\n", encoding="utf-8")
    figures: Figures = json.loads(path.read_text(encoding="utf-8"))
    return figures


def copying(model: CausalModel, repeats: Repeats) -> dict[str, float]:
    """Loss of passages, and of what can be copied of them when they are repeated in the context."""
    new, repeated = losses_in_context(model, repeats)
    return {"new": new, "repeated": repeated}


def held_out_passages(split: Split) -> tuple[Repeats, torch.Tensor]:
    """To calibrate on: 64 tokens of held-out documents, repeated, and the same with the 64 tokens after them;
    fewer where documents are shorter."""
    longest = max(map(len, split.held_out), default=0)
    texts = cut_passages(split.held_out, min(128, longest // 2 * 2), CALIBRATED)
    generator = torch.Generator().manual_seed(0)
    return repeat_passages(texts[:, : texts.shape[1] // 2], PIECE_TOKENS, generator), texts


if __name__ == "__main__":
    try:
        main()
    except M3Error as error:
        click.echo(f"teach_memory: {error}", err=True)
        sys.exit(error.exit_code)
