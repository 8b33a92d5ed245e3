"""``python -m examples.m3_mini.ship TAUGHT OUT``: a taught model as it ships, in bfloat16.

With ``--corpus``, ``--measured`` and ``--ablation`` its card too, from what ``examples.m3_mini.corpus``,
``measure`` and ``ablation`` left: so measure what this wrote, then run it again for the card.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from string import Template
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM

from m3build.model.causal import CausalModel, load_causal_model
from m3build.model.memory3_file import read_memory3, write_memory3

COPIED = ("tokenizer.json", "tokenizer_config.json", "losses.png")
# Quantized memories must be worth what exact ones are: at the paper's 1.35 bits a dimension nearly a third of
# what passages gain is lost, with SQ4 two thirds of what retrieved references do (figures in the card).
# Product quantization of 4 bits loses little, but takes a third of the time of encoding; this takes none.
CODEC = "SQ6"
# Each reference that is found and what follows it, in place of as many that were found (figures in the card).
CONTINUATIONS = True


@click.command(context_settings={"show_default": True})
@click.argument("taught", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--codec", default=CODEC, help="What its memories are quantized with.")
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), help="For the card: sources.md.")
@click.option("--measured", type=click.Path(path_type=Path, exists=True), help="For the card: tables.md.")
@click.option("--ablation", type=click.Path(path_type=Path, exists=True), help="For the card: table.md.")
def main(
    taught: Path, out: Path, codec: str, corpus: Path | None, measured: Path | None, ablation: Path | None
) -> None:
    """Write a model directory as it ships, and its card if there are figures for it."""
    out.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(taught, dtype=torch.bfloat16)
    model.save_pretrained(out)
    for name in COPIED:
        shutil.copyfile(taught / name, out / name)
    (out / "model.safetensors").chmod(0o644)
    write_memory3(out, {**read_memory3(taught), "continuations": CONTINUATIONS, "codec": codec})
    shipped = load_causal_model(str(out), device="cpu", dtype="float32")
    if corpus and measured and ablation:
        steps = [json.loads(line) for line in (taught / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        text = card(
            shipped,
            steps,
            (corpus / "sources.md").read_text(encoding="utf-8"),
            (measured / "tables.md").read_text(encoding="utf-8"),
            (ablation / "table.md").read_text(encoding="utf-8"),
        )
        (out / "README.md").write_text(text, encoding="utf-8")


def card(model: CausalModel, steps: list[dict[str, Any]], sources: str, figures: str, ablation: str) -> str:
    """The model card: card.md, filled in."""
    config, shape = model.model.config, model.shape
    last = {entry["stage"]: entry for entry in steps}
    stages = "; ".join(f"{name}: {entry['step']:,} steps" for name, entry in last.items())
    heads = "; ".join(
        f"{layer}: {', '.join(map(str, shape.heads_of(layer)))}" for layer in shape.memory_layers
    )
    template = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    return template.substitute(
        parameters=f"{model.model.num_parameters():,}",
        layers=config.num_hidden_layers,
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocabulary=f"{config.vocab_size:,}",
        positions=f"{config.max_position_embeddings:,}",
        memory_heads=heads,
        reference_tokens=shape.reference_tokens,
        sparse_tokens=shape.sparse_tokens,
        stages=stages,
        figures=figures,
        ablation=ablation,
        sources=sources,
    )


if __name__ == "__main__":
    main()
