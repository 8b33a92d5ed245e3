"""The training loop: AdamW, or Muon with it, a warm-up/stable/decay schedule, checkpoints without pickle.

A checkpoint is a directory with the weights and the optimizers' moments as safetensors and the step as JSON.
It is written beside the last one, then takes its place; what interrupts that leaves one of the two.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from examples.teach_memory.memory_pass import IGNORED, Batch, mean_loss
from examples.teach_memory.muon import Muon
from m3build.model.causal import CausalModel

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a stage, its peak learning rate, and the shares of the steps in which the rate rises and
    falls; between them it stays."""

    steps: int
    rate: float
    rising: float = 0.05
    falling: float = 0.3

    def at(self, step: int) -> float:
        """The learning rate of a step; it falls to a twentieth."""
        up = (step + 1) / max(1.0, self.rising * self.steps)
        down = (self.steps - step) / max(1.0, self.falling * self.steps)
        return self.rate * min(1.0, up, max(0.05, down))


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of training: its name, how long and fast, its batches by step, after how many steps the
    held-out documents are looked at and a checkpoint is written, whether Muon trains the matrices of the
    blocks, and whether passes are ``mixed``, their matrix products in bfloat16."""

    name: str
    schedule: Schedule
    batch: Callable[[int], Batch]
    every: int = 100
    muon: bool = False
    mixed: bool = False


def train(
    model: CausalModel, stage: Stage, checkpoint: Path, log: Log, measure: Callable[[], dict[str, float]]
) -> None:
    """Run a stage to its end, from its checkpoint if there is one. ``measure`` gives what is logged of the
    held-out documents."""
    optimizers = optimizers_of(model, stage.muon)
    first = _resume(model, optimizers, checkpoint)
    began, tokens = time.monotonic(), 0
    losses: list[float] = []
    for step in range(first, stage.schedule.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.schedule.at(step)
        batch = stage.batch(step)
        model.model.train()
        # Weights, gradients and moments stay float32: a step is often too small for a bfloat16 weight.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=stage.mixed):
            loss = mean_loss(model, batch)
        model.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.model.eval()
        losses.append(float(loss.detach()))
        tokens += int((batch.labels != IGNORED).sum())
        done = step + 1
        if done % stage.every == 0 or done == stage.schedule.steps:
            log(
                {
                    "stage": stage.name,
                    "step": done,
                    "train_loss": sum(losses) / len(losses),
                    "rate": stage.schedule.at(step),
                    "tokens": tokens,
                    "seconds": round(time.monotonic() - began, 1),
                    "cpu_seconds": round(time.process_time(), 1),
                    "held_out": measure(),
                }
            )
            losses.clear()
            _save(model, optimizers, done, checkpoint)


def optimizers_of(model: CausalModel, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices of the blocks, and AdamW for embeddings, head and all that is no
    matrix."""
    outside = {id(own) for part in _embeddings(model) for own in part.parameters()}
    weights = list(_weights(model).values())
    matrices = [own for own in weights if muon and own.ndim == 2 and id(own) not in outside]
    rest = [own for own in weights if all(own is not matrix for matrix in matrices)]
    adam = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    return [Muon(matrices), adam] if matrices else [adam]


def _embeddings(model: CausalModel) -> list[torch.nn.Module]:
    parts = (model.model.get_input_embeddings(), model.model.get_output_embeddings())
    return [part for part in parts if part is not None]


def _weights(model: CausalModel) -> dict[str, torch.nn.Parameter]:
    return {name: own for name, own in model.model.named_parameters() if own.requires_grad}


def _save(
    model: CausalModel, optimizers: Sequence[torch.optim.Optimizer], step: int, checkpoint: Path
) -> None:
    fresh, last = (
        checkpoint.with_name(f"{checkpoint.name}.new"),
        checkpoint.with_name(f"{checkpoint.name}.old"),
    )
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    weights = _weights(model)
    moments = {
        f"{moment}/{name}": value.contiguous()
        for name, own in weights.items()
        for optimizer in optimizers
        if own in optimizer.state
        for moment, value in optimizer.state[own].items()
    }
    save_file(
        {name: own.detach().contiguous() for name, own in weights.items()}, fresh / "weights.safetensors"
    )
    save_file(moments, fresh / "moments.safetensors")
    (fresh / "state.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    if checkpoint.exists():
        shutil.rmtree(last, ignore_errors=True)
        checkpoint.rename(last)
    fresh.rename(checkpoint)
    shutil.rmtree(last, ignore_errors=True)


def restore(model: CausalModel, checkpoint: Path) -> None:
    """Give a model the weights of a checkpoint."""
    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, own in _weights(model).items():
            own.copy_(weights[name])


def _resume(model: CausalModel, optimizers: Sequence[torch.optim.Optimizer], checkpoint: Path) -> int:
    """Load a checkpoint; the step to go on with, 0 without one."""
    last = checkpoint.with_name(f"{checkpoint.name}.old")
    if last.exists() and not checkpoint.exists():
        last.rename(checkpoint)
    if not (checkpoint / "state.json").is_file():
        return 0
    step = int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"])
    restore(model, checkpoint)
    moments = load_file(checkpoint / "moments.safetensors")
    of = {id(own): name for name, own in _weights(model).items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for own in group["params"]:
                for key, value in moments.items():
                    moment, _, name = key.partition("/")
                    if name == of[id(own)]:
                        optimizer.state[own][moment] = value.to(own) if value.ndim else value
    return step
