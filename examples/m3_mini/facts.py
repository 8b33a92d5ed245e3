"""Planted facts: made-up functions with made-up return values, each told in one document of a bank. Does the
model complete from memory what it cannot know?

The prompt names the function in other words than the document does, but for the few before the value; what is
retrieved is retrieved by the prompt alone, and the value is scored token by token after it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from m3build.evaluation.bootstrap import mean_per_token
from m3build.model.causal import CausalModel
from m3build.reader import Reader, attach

SYLLABLES = [a + b + c for a in "bdfgklmprstvz" for b in "aeiou" for c in ("", "l", "n", "r", "s")]
PURPOSES = (
    "checks the state of the queue before a worker starts",
    "names the layout in which rows are sent to the client",
    "gives the mode that the parser falls back to",
    "reports how the last connection was closed",
    "tells which table the planner would read first",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A function, what it is for, and what it returns."""

    function: str
    purpose: str
    value: str

    @property
    def document(self) -> str:
        """What the bank holds of it."""
        return (
            f"{self.function}()\n\nThis function {self.purpose}. It takes no arguments and can be called at"
            f" any time. {self.function}() returns {self.value}. The result does not change while the program"
            " runs."
        )

    @property
    def prompt(self) -> str:
        """A context that the value completes."""
        return f"What is the result when a program calls {self.function}()? {self.function}() returns"


def make_facts(number: int, seed: int = 0) -> list[Fact]:
    """Different facts; no two have a function or a value in common."""
    random = Random(seed)
    words: dict[str, None] = {}
    while len(words) < 3 * number:
        words["".join(random.choices(SYLLABLES, k=random.choice((2, 3))))] = None
    made = iter(words)
    return [Fact(f"{next(made)}_{next(made)}", random.choice(PURPOSES), next(made)) for _ in range(number)]


@torch.no_grad()
def score(
    model: CausalModel, prompt: str, value: str, reader: Reader | None = None
) -> tuple[bool, float, bool]:
    """Whether greedy search completes a prompt with the value; the loss of the value in nats a token; and
    whether what was read holds the value."""
    ids = [*model.bos, *model.tokenizer.encode(prompt, add_special_tokens=False)]
    output = model.model(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
    found = reader is not None and any(value in getattr(hit, "text", "") for hit in reader.last_read[0])
    losses, greedy = [], True
    for token in model.tokenizer.encode(f" {value}", add_special_tokens=False):
        chances = output.logits[0, -1].float().log_softmax(-1)
        losses.append(-float(chances[token]))
        greedy &= int(chances.argmax()) == token
        output = model.model(
            input_ids=torch.tensor([[token]], device=model.device),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
    return greedy, sum(losses) / len(losses), found


def measure_facts(model: CausalModel, bank: Path, facts: list[Fact]) -> dict[str, Any]:
    """Rates and losses without memory, with the bank's memories, and with the document in the context; means
    over facts with 95 % intervals."""
    results: dict[str, Any] = {"facts": len(facts)}
    ways = {
        "none": (False, lambda fact: fact.prompt),
        "memories": (True, lambda fact: fact.prompt),
        "text": (False, lambda fact: f"{fact.document}\n\n{fact.prompt}"),
    }
    losses = {}
    for name, (reads, context) in ways.items():
        with attach(model.model, bank, tokenizer=model.tokenizer) if reads else nullcontext() as reader:
            scored = [score(model, context(fact), fact.value, reader) for fact in facts]
        completed, losses[name], found = map(list, zip(*scored, strict=True))
        results[name] = {"completed": rate(completed), "loss": _mean(losses[name])}
        if reads:
            results["retrieved"] = rate(found)
    gained = [without - own for without, own in zip(losses["none"], losses["memories"], strict=True)]
    return {**results, "gain": _mean(gained)}


def rate(happened: list[bool]) -> dict[str, float | None]:
    """A share with its 95 % interval (Wilson's: resampling says nothing of a share that is 0 or 1)."""
    n, z = len(happened), 1.96
    share = sum(happened) / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    apart = z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    return {"mean": share, "low": max(0.0, middle - apart), "high": min(1.0, middle + apart)}


def _mean(values: list[float]) -> dict[str, float | None]:
    return mean_per_token(values, [1] * len(values)).to_json()
