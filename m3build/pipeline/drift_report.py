"""What a build says of drift: figures on new references beside those at training, and when they are a
warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

# Of fewer references the figures are given but not judged: vectors of one reference are alike, and so vary
# too little about their own mean.
JUDGED_REFERENCES: Final = 32
STANDARD_ERRORS: Final = 2.0
WORDS: Final = {
    "key_error": "the codec's error of keys",
    "value_error": "the codec's error of values",
    "ngram_weight": "the mean weight of an n-gram for the embedder",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: ``training`` is what it was then, ``new`` what it is on the sample (None: not measured);
    ``standard_error`` that of their difference, None where the sample is too small to tell."""

    name: str
    training: float | None
    new: float | None
    standard_error: float | None

    def exceeds(self, limit: float) -> bool:
        """Whether it grew by more than ``limit`` and by more than chance explains."""
        if self.training is None or self.new is None or self.standard_error is None:
            return False
        gap = self.new - self.training
        return gap > limit * self.training and gap > STANDARD_ERRORS * self.standard_error


@dataclass(frozen=True, slots=True)
class Drift:
    """The figures on ``sampled`` of ``references`` new ones."""

    references: int
    sampled: int
    limit: float
    figures: tuple[Figure, ...]

    @property
    def judged(self) -> bool:
        """Whether the sample is large enough to warn of anything."""
        return self.sampled >= JUDGED_REFERENCES

    @property
    def exceeded(self) -> tuple[Figure, ...]:
        """The figures that are past the limit."""
        return tuple(figure for figure in self.figures if figure.exceeds(self.limit))

    def warning(self) -> str | None:
        """What to tell where a figure is past the limit: which, by how much, and what helps."""
        if not self.exceeded:
            return None
        grown = "; ".join(
            f"{WORDS[figure.name]} is {figure.new:.3g} on them, {figure.training:.3g} at training"
            for figure in self.exceeded
        )
        return (
            f"the {self.references:,} new references are unlike those that codec and embedder were made "
            f"from, by more than --drift {100 * self.limit:g}%: {grown}. --retrain makes new ones, and "
            "encodes all anew"
        )

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "references": self.references,
            "sampled": self.sampled,
            "limit": self.limit,
            "judged": self.judged,
            "exceeded": [figure.name for figure in self.exceeded],
            **{
                figure.name: {
                    "training": figure.training,
                    "new": figure.new,
                    "standard_error": figure.standard_error,
                }
                for figure in self.figures
            },
        }
