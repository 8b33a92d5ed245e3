"""The training loop: AdamW, a warm-up/stable/decay schedule, checkpoints without pickle.

A checkpoint is a directory with the weights and the optimizer's two moments as safetensors and the step as
JSON. It is written beside the last one, then takes its place.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from examples.teach_memory.memory_pass import IGNORED, Batch, mean_loss
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
    """A stage of training: its name, how long and fast, its batches by step, and after how many steps the
    held-out documents are looked at and a checkpoint is written."""

    name: str
    schedule: Schedule
    batch: Callable[[int], Batch]
    every: int = 100


def train(
    model: CausalModel, stage: Stage, checkpoint: Path, log: Log, measure: Callable[[], dict[str, float]]
) -> None:
    """Run a stage to its end, from its checkpoint if there is one. ``measure`` gives what is logged of the
    held-out documents."""
    optimizer = torch.optim.AdamW(model.model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    first = _resume(model, optimizer, checkpoint)
    began, tokens = time.monotonic(), 0
    losses: list[float] = []
    for step in range(first, stage.schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.schedule.at(step)
        batch = stage.batch(step)
        model.model.train()
        loss = mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
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
            _save(model, optimizer, done, checkpoint)


def _weights(model: CausalModel) -> dict[str, torch.nn.Parameter]:
    return {name: own for name, own in model.model.named_parameters() if own.requires_grad}


def _save(model: CausalModel, optimizer: torch.optim.Optimizer, step: int, checkpoint: Path) -> None:
    fresh = checkpoint.with_name(f"{checkpoint.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    weights = _weights(model)
    moments = {
        f"{moment}/{name}": optimizer.state[own][moment].contiguous()
        for name, own in weights.items()
        for moment in ("exp_avg", "exp_avg_sq")
        if own in optimizer.state
    }
    save_file(
        {name: own.detach().contiguous() for name, own in weights.items()}, fresh / "weights.safetensors"
    )
    save_file(moments, fresh / "moments.safetensors")
    (fresh / "state.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    shutil.rmtree(checkpoint, ignore_errors=True)
    fresh.rename(checkpoint)


def _resume(model: CausalModel, optimizer: torch.optim.Optimizer, checkpoint: Path) -> int:
    """Load a checkpoint; the step to go on with, 0 without one."""
    if not (checkpoint / "state.json").is_file():
        return 0
    step = int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"])
    weights = load_file(checkpoint / "weights.safetensors")
    moments = load_file(checkpoint / "moments.safetensors")
    with torch.no_grad():
        for name, own in _weights(model).items():
            own.copy_(weights[name])
            if f"exp_avg/{name}" in moments:
                optimizer.state[own] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": moments[f"exp_avg/{name}"].to(own.device),
                    "exp_avg_sq": moments[f"exp_avg_sq/{name}"].to(own.device),
                }
    return step
