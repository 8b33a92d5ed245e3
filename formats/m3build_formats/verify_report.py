"""What `verify` reports, for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: the file (relative to the bank), the first row concerned where it is known, the promise
    broken in a few words, and what was found."""

    file: str
    row: int | None
    promise: str
    message: str

    def __str__(self) -> str:
        row = "" if self.row is None else f" row {self.row}"
        return f"{self.file}{row}: {self.promise}: {self.message}"


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. ``unreachable`` names files that no version needs; they are no fault."""

    problems: tuple[Problem, ...]
    unreachable: tuple[str, ...]
    files_checked: int
    bytes_checked: int

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "problems": [
                {"file": item.file, "row": item.row, "promise": item.promise, "message": item.message}
                for item in self.problems
            ],
            "unreachable": list(self.unreachable),
            "files_checked": self.files_checked,
            "bytes_checked": self.bytes_checked,
        }
