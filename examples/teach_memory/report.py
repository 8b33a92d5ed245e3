"""What is left beside the weights: the log's curves as a picture, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m3build.model.causal import CausalModel

LOG, PICTURE, CARD = "log.jsonl", "losses.png", "README.md"

Figures = Mapping[str, Mapping[str, float | None]]
"""Means with 95 % intervals, by name (see :mod:`examples.teach_memory.measuring`)."""


def draw(directory: Path) -> bool:
    """Held-out losses by step as a PNG; False where matplotlib (the ``plot`` extra) is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    entries = [json.loads(line) for line in (directory / LOG).read_text(encoding="utf-8").splitlines()]
    stages = list(dict.fromkeys(entry["stage"] for entry in entries))
    figure = Figure(figsize=(5 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        own: list[dict[str, Any]] = [entry for entry in entries if entry["stage"] == stage]
        for name in own[0]["held_out"]:
            axes.plot([e["step"] for e in own], [e["held_out"][name] for e in own], marker=".", label=name)
        axes.set(title=stage, xlabel="step", ylabel="held-out loss (nats a token)")
        axes.legend()
    figure.savefig(directory / PICTURE, dpi=120)
    return True


def write_card(
    directory: Path, model: CausalModel, said: Sequence[str], before: Figures, after: Figures
) -> None:
    """The model card: where memories sit, what was done (``said``), the figures of the model as
    it was given and as it was taught."""
    shape = model.shape
    heads = "; ".join(
        f"{layer}: {', '.join(map(str, shape.heads_of(layer)))}" for layer in shape.memory_layers
    )
    documents = after["plain"]["documents"]
    lines = [
        f"# {directory.name}",
        "",
        f"{model.facts.name}, taught to read Memory³ explicit memories. Key-value heads that hold memory, by"
        f" layer: {heads}. Of up to {shape.reference_tokens} tokens of a reference each keeps"
        f" {shape.sparse_tokens}.",
        "",
        *said,
        "",
        f"Nats a token on {documents} held-out documents, in contexts from token {shape.reference_tokens} on,"
        " with 95 % intervals over documents. Gains are over the better of plain context and context after"
        " the reference BOS.",
        "",
        "| | as given | taught |",
        "| --- | --- | --- |",
        *(f"| {name} | {interval(before[name])} | {interval(after[name])} |" for name in after),
        "",
    ]
    if (directory / PICTURE).exists():
        lines += [f"![Losses by step]({PICTURE})", ""]
    (directory / CARD).write_text("\n".join(lines), encoding="utf-8")


def interval(found: Mapping[str, float | None]) -> str:
    """A mean with its interval, where there is one."""
    mean, low, high = found["mean"], found["low"], found["high"]
    return f"{mean:.4f}" if low is None else f"{mean:.4f} ({low:.4f} to {high:.4f})"
