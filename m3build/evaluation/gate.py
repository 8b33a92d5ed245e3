"""``--require 'loss_gain>=0.02'``: conditions on figures by which a CI job lets a bank pass.

A condition is read, and refused if it names no figure or one that this evaluation does not measure, before
any work is done. A figure without a value (an interval of one document) fails.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from m3build_formats.errors import GateError, UsageError

Source = Literal["text", "queries", "control"]
Path = tuple[str, ...]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([a-z0-9_@]+)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*", re.I)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: what it says, what it is measured on, and where it stands in the results."""

    meaning: str
    source: Source
    path: Path


FIGURES: dict[str, Figure] = {
    "loss_gain": Figure(
        "nats per token that the stored memories save, against none", "text", ("gain", "quantized", "mean")
    ),
    "loss_gain_low": Figure("low end of its 95 % interval", "text", ("gain", "quantized", "low")),
    "random_margin": Figure(
        "nats per token by which they save more than references at random",
        "text",
        ("gain_over_random", "mean"),
    ),
    "random_margin_low": Figure("low end of its 95 % interval", "text", ("gain_over_random", "low")),
    "gain_kept": Figure(
        "share of the unquantized memories' gain that the stored ones keep", "text", ("gain_kept",)
    ),
    "loss": Figure("nats per token with the stored memories", "text", ("loss", "quantized")),
    "loss_none": Figure("nats per token without memories", "text", ("loss", "none")),
    "bits_per_character": Figure(
        "bits per character with the stored memories", "text", ("bits_per_character", "quantized")
    ),
    "exact_gain": Figure("nats per token that unquantized memories save", "text", ("gain", "exact", "mean")),
    "random_gain": Figure("… memories of random references", "text", ("gain", "random", "mean")),
    "text_gain": Figure("… the references as text in the context", "text", ("gain", "text", "mean")),
    "dense_gain": Figure("… all keys and values of the references", "text", ("gain", "dense", "mean")),
    "control_margin": Figure(
        "nats per token by which the stored memories save more than the control's plain context",
        "control",
        ("control", "gain_over", "mean"),
    ),
    "reading_cost": Figure(
        "share of the tokens per second that reading costs, 0 to 1", "text", ("cost", "reading_cost")
    ),
    "hit@1": Figure(
        "share of questions answered by the first document", "queries", ("retrieval", "index", "hit@1")
    ),
    "hit@5": Figure("… within five", "queries", ("retrieval", "index", "hit@5")),
    "hit@10": Figure("… within ten", "queries", ("retrieval", "index", "hit@10")),
    "mrr": Figure("mean of 1 / rank of that document", "queries", ("retrieval", "index", "mrr")),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A figure, one of ``>= > <= <``, and a number."""

    figure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.bound:g}"

    def holds(self, value: float | None) -> bool:
        """Whether a value meets the condition; no value does not."""
        return value is not None and _COMPARISONS[self.comparison](value, self.bound)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A condition, the value its figure had, and whether it held."""

    condition: Condition
    value: float | None
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """``{"figure", "condition", "value", "passed"}``."""
        return {
            "figure": self.condition.figure,
            "condition": str(self.condition),
            "value": self.value,
            "passed": self.passed,
        }


def parse_conditions(texts: Iterable[str], sources: Iterable[Source]) -> tuple[Condition, ...]:
    """The conditions that texts state. ``sources``: what will be measured. Raises UsageError for one that
    cannot be read, names no figure, or one that will not be measured."""
    measured = frozenset(sources)
    return tuple(_parse(text, measured) for text in texts)


def _parse(text: str, measured: frozenset[Source]) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--require {text!r}: is not a figure, one of >= > <= < and a number, such as 'loss_gain>=0.02'"
        )
    name, comparison, bound = match.groups()
    figure = FIGURES.get(name.lower())
    if figure is None:
        raise UsageError(f"--require {text!r}: {name} is no figure; there are {', '.join(FIGURES)}")
    if figure.source not in measured:
        needed = {"text": "--text", "queries": "--queries and --qrels", "control": "--text and --control"}[
            figure.source
        ]
        raise UsageError(f"--require {text!r}: {name} is measured only with {needed}")
    return Condition(name.lower(), comparison, float(bound))


def judge(conditions: Iterable[Condition], results: Mapping[str, Any]) -> tuple[Outcome, ...]:
    """Each condition with the value that the results hold for its figure."""
    outcomes = []
    for condition in conditions:
        value: Any = results
        for key in FIGURES[condition.figure].path:
            value = value.get(key) if isinstance(value, Mapping) else None
        number = float(value) if isinstance(value, int | float) else None
        outcomes.append(Outcome(condition, number, condition.holds(number)))
    return tuple(outcomes)


def enforce(outcomes: Iterable[Outcome]) -> None:
    """Raises GateError that names every condition that did not hold, with the value there was."""
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if failed:
        listed = "; ".join(
            f"{outcome.condition.figure} is "
            f"{'not known' if outcome.value is None else f'{outcome.value:.4g}'}, "
            f"required {outcome.condition.comparison}{outcome.condition.bound:g}"
            for outcome in failed
        )
        raise GateError(f"the bank does not pass: {listed}")
