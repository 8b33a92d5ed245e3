"""What a row of the fault tests counted, and what it found wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

MOST_KEPT: Final = 100


@dataclass
class Tally:
    """Counts by name, and findings: each is one broken promise, in words that say how to see it again."""

    row: str
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    broken: int = 0

    def find(self, words: str) -> None:
        """Notes one broken promise; the first `MOST_KEPT` keep their words."""
        self.broken += 1
        if len(self.findings) < MOST_KEPT:
            self.findings.append(words)

    @contextmanager
    def expect(self, case: str) -> Iterator[None]:
        """A block that must not raise; what it raises is a finding under the name of the case."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (whatever it is, it is a finding)
            self.find(f"{case}: {type(error).__name__}: {error}")

    def check(self) -> None:
        """Fails with the findings, if there are any."""
        assert not self.broken, f"{self.row}: {self.broken} findings\n" + "\n".join(self.findings[:20])

    def lines(self) -> list[str]:
        """For people: counts, then findings."""
        counted = [f"  {number:>9,} {words}" for words, number in self.counts.items()]
        return [f"{self.row}: {self.broken} findings", *counted, *(f"  ! {words}" for words in self.findings)]
