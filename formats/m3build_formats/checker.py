"""Checks JSON values of any type and collects what is wrong, each with the path to its place."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where (a path such as ``shards[3].chunks.bytes``) and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class Checker:
    """Collects problems; each method returns the value with its narrow type, or None after noting why not."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def mapping(
        self, value: object, path: str, required: Any = (), *, exact: bool = False
    ) -> Mapping[str, Any] | None:
        if not isinstance(value, dict):
            self._wrong(value, path, "an object")
            return None
        for key in sorted(required):
            if key not in value:
                self.add(path, f"has no {key!r}")
        if exact:
            for key in sorted(set(value) - set(required)):
                self.add(path, f"has the unknown key {key[:60]!r}")
        return value

    def integer(self, value: object, path: str, low: int, high: int) -> int | None:
        if type(value) is not int or not low <= value <= high:
            self._wrong(
                value, path, f"the integer {low}" if low == high else f"an integer from {low} to {high}"
            )
            return None
        return value

    def number(self, value: object, path: str) -> float | None:
        if type(value) is int or type(value) is float:
            return value
        self._wrong(value, path, "a number")
        return None

    def text(self, value: object, path: str) -> str | None:
        if isinstance(value, str) and value:
            return value
        self._wrong(value, path, "a string that is not empty")
        return None

    def matching(self, value: object, path: str, pattern: re.Pattern[str], words: str) -> str | None:
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        self._wrong(value, path, words)
        return None

    def integers(self, value: object, path: str, high: int, most: int) -> list[int] | None:
        """A strictly ascending list of integers from 0 to ``high``."""
        if (
            isinstance(value, list)
            and len(value) <= most
            and set(map(type, value)) <= {int}
            and all(map(operator.lt, value, value[1:]))
            and (not value or (value[0] >= 0 and value[-1] <= high))
        ):
            return value
        self._wrong(value, path, f"an ascending list of integers from 0 to {high}")
        return None

    def _wrong(self, value: object, path: str, words: str) -> None:
        shown = (
            repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
        )
        self.add(path, f"expected {words}, got {shown[:80]}")
