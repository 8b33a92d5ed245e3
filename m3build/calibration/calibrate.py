"""Which layers and heads of a model should hold memories, by measurement.

Design:

- The paper keeps memories in the first half of 44 layers (Memory³ §3.4). A small model reads elsewhere, and
  memories in layers that do not read teach it to ignore them.
- What decides is the loss with every token of a choice of layers as memory, before any training for it: on
  passages that are repeated (copying from memory) and, with text of a corpus, on passages that go on (using
  the memory of what came before).
- A gain is over the better of no memory and another passage's memory: the format itself may help or harm.
- Candidates are the layers in which a head copies, and those that gain by themselves where passages go on;
  each of both is put together from the best layer down.
- Fewer layers are smaller memories and cheaper reading: of all candidates the smallest that keeps nearly all
  of the best one's gain is recommended; of its heads likewise. A gain has to stand out of its own scatter
  over the passages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from m3build.calibration.head_scores import HeadScores, head_scores
from m3build.calibration.passages import Repeats
from m3build.calibration.reading_loss import Heads, Passages, losses_in_context, reading_losses
from m3build.model.causal import CausalModel

COPYING_HEAD = 0.1
"""A head with this much of its attention on the token after the earlier occurrence copies. Spread evenly over
100 tokens and more it would be 0.01 at most."""
COPYING_MODEL = 0.5
"""A model copies well if what it can copy costs it at most this share of the loss that the same text costs
when it comes first."""
KEPT_GAIN = 0.9
"""Share of the best gain that a smaller choice must keep."""
CLEAR = 3.0
"""Standard errors that a gain must be away from zero."""
LEAST_GAIN = 0.01
"""Nats a token that a gain must be worth: a model with random weights has gains, too, of a thousandth, since
its output resembles its input."""
MOST_LAYERS = 8


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean loss when reading, the mean gain over the better of no memory and another passage's, and the
    gain's standard error over passages; nats a token."""

    loss: float
    mean: float
    error: float

    @classmethod
    def of(cls, own: torch.Tensor, other: torch.Tensor, without: torch.Tensor) -> Gain:
        """From losses by passage (B,)."""
        gains = min(other, without, key=lambda losses: float(losses.mean())) - own
        return cls(float(own.mean()), float(gains.mean()), float(gains.std() / len(gains) ** 0.5))


@dataclass(frozen=True, slots=True)
class Choice:
    """Memory heads that were tried, and what they gain where passages are repeated and, with a corpus, where
    they go on."""

    heads: Heads
    repeated: Gain
    continued: Gain | None = None

    @property
    def gain(self) -> float:
        """Both gains together."""
        return self.repeated.mean + (self.continued.mean if self.continued else 0.0)

    @property
    def clear(self) -> bool:
        """Whether a gain is worth something and stands out of its scatter."""
        found = [self.repeated, self.continued]
        return any(gain.mean > max(LEAST_GAIN, CLEAR * gain.error) for gain in found if gain)

    def to_json(self) -> dict[str, Any]:
        """Heads by layer, gains with ``loss``, ``mean`` and ``error``."""
        return {
            "memory_heads": _json_heads(self.heads),
            "repeated": asdict(self.repeated),
            "continued": asdict(self.continued) if self.continued else None,
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured on repeated passages. Losses in nats a token.

    ``first_loss`` of passages and ``repeated_loss`` of what is copied of them, in plain context;
    ``without_memory`` the losses of repeated and of continued passages when the reference is neither in
    memory nor in context; ``choices`` what reading makes of that; ``recommended`` the best one, if any.
    """

    scores: HeadScores
    kv_heads: int
    first_loss: float
    repeated_loss: float
    without_memory: tuple[float, ...]
    choices: tuple[Choice, ...]
    recommended: Choice | None

    @property
    def copies(self) -> bool:
        """Whether the model copies well in plain context."""
        return self.repeated_loss <= COPYING_MODEL * self.first_loss

    @property
    def kv_copying(self) -> torch.Tensor:
        """Copying score of key-value heads, (layers, kv_heads): the best of those that share each."""
        return _of_kv_heads(self.scores, self.kv_heads)

    def memory3(self) -> dict[str, Any]:
        """What ``memory3.json`` should say; {} without a recommendation."""
        if self.recommended is None:
            return {}
        heads = self.recommended.heads
        found: dict[str, Any] = {"memory_layers": list(heads)}
        if any(len(of) < self.kv_heads for of in heads.values()):
            found["memory_heads"] = _json_heads(heads)
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        return {
            "copies": self.copies,
            "first_loss": self.first_loss,
            "repeated_loss": self.repeated_loss,
            "without_memory": list(self.without_memory),
            "layers": [
                {"layer": layer, "copying": copying, "previous_token": previous}
                for layer, (copying, previous) in enumerate(
                    zip(self.scores.copying.tolist(), self.scores.previous.tolist(), strict=True)
                )
            ],
            "choices": [choice.to_json() for choice in self.choices],
            "recommended": self.memory3() or None,
        }


@torch.no_grad()
def calibrate(model: CausalModel, repeats: Repeats, texts: torch.Tensor | None = None) -> Calibration:
    """Measure a model on repeated passages and, if there are any, on ``texts`` int64 (n, 2·P), passages whose
    second halves follow on the first (see the module).

    Raises MismatchError where its attention is not the standard causal kind."""
    scores = head_scores(model.base, repeats, model.bos)
    first_loss, repeated_loss = losses_in_context(model, repeats)
    tasks = [Passages.repeated(repeats)]
    if texts is not None:
        tasks.append(Passages.continued(texts))
    without = [reading_losses(model, task, [{}])[0] for task in tasks]

    def measured(tried: Sequence[Heads]) -> list[Choice]:
        own = [reading_losses(model, task, tried) for task in tasks]
        other = [reading_losses(model, task, tried, shift=1) for task in tasks]
        return [
            Choice(heads, *map(Gain.of, *of_both, without))
            for heads, *of_both in zip(tried, zip(*own, strict=True), zip(*other, strict=True), strict=True)
        ]

    def whole(layers: Iterable[int]) -> Heads:
        return {layer: range(model.facts.kv_heads) for layer in sorted(layers)}

    copying = scores.copying.max(dim=1).values
    orders = [[at for at in _descending(copying) if copying[at] >= COPYING_HEAD]]
    if texts is not None:
        alone = measured([whole([layer]) for layer in range(model.facts.layers)])
        gains = torch.tensor([choice.continued.mean if choice.continued else 0.0 for choice in alone])
        clear = any(choice.clear for choice in alone)
        orders.append(_descending(gains) if clear else [])
    candidates = [choice for order in orders for choice in _candidates(order)]
    first_half = tuple(range(max(1, model.facts.layers // 2)))
    choices = measured([whole(layers) for layers in dict.fromkeys([*candidates, first_half])])
    # The paper's first half is there to compare with, and stands last if no candidate is it.
    recommended = _smallest(choices[: len(set(candidates))])
    if recommended is not None:
        by_head = _of_kv_heads(scores, model.facts.kv_heads)
        fewer = {
            layer: [h for h in of if by_head[layer, h] >= COPYING_HEAD]
            for layer, of in recommended.heads.items()
        }
        fewer = {layer: heads for layer, heads in fewer.items() if heads}
        if fewer and _size(fewer) < _size(recommended.heads):
            choices += measured([fewer])
            recommended = _smallest([recommended, choices[-1]])
    return Calibration(
        scores=scores,
        kv_heads=model.facts.kv_heads,
        first_loss=first_loss,
        repeated_loss=repeated_loss,
        without_memory=tuple(float(losses.mean()) for losses in without),
        choices=tuple(choices),
        recommended=recommended,
    )


def _descending(of_layers: torch.Tensor) -> list[int]:
    return [int(at) for at in of_layers.argsort(descending=True, stable=True)]


def _candidates(order: Sequence[int]) -> list[tuple[int, ...]]:
    """Sets of layers to try: those in ``order``, one more at a time, and all layers from the first to the
    last of each such set."""
    sets: list[tuple[int, ...]] = []
    for count in range(1, min(len(order), MOST_LAYERS) + 1):
        chosen = order[:count]
        sets += [tuple(sorted(chosen)), tuple(range(min(chosen), max(chosen) + 1))]
    return list(dict.fromkeys(sets))


def _smallest(choices: list[Choice]) -> Choice | None:
    """The choice of the fewest heads that keeps nearly all of the largest clear gain."""
    clear = [choice for choice in choices if choice.clear and choice.gain > 0]
    if not clear:
        return None
    enough = KEPT_GAIN * max(choice.gain for choice in clear)
    return min((choice for choice in clear if choice.gain >= enough), key=lambda choice: _size(choice.heads))


def _size(heads: Heads) -> int:
    return sum(map(len, heads.values()))


def _of_kv_heads(scores: HeadScores, kv_heads: int) -> torch.Tensor:
    layers, query_heads = scores.copying.shape
    return scores.copying.view(layers, kv_heads, query_heads // kv_heads).max(dim=2).values


def _json_heads(heads: Heads) -> dict[str, list[int]]:
    return {str(layer): list(of) for layer, of in heads.items()}
