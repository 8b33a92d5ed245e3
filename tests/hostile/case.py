"""What a case of a hostile bank is, and the list that the case modules fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from forge import Forge
from good_bank import SPEC

Spoil = Callable[[Forge], object]


@dataclass(frozen=True)
class Case:
    """A way to spoil the sound bank whose index is ``spec``, and what must come of it.

    ``error`` names the class with which reading step ``step`` (`reading.py`), the first to fail, refuses the
    bank in words that ``words`` matches; "" where every step reads what is there. ``verified``: whether
    ``verify`` calls the bank sound. ``same``: whether all that is read equals the sound bank's.
    ``on_disk`` is done to the finished bank. ``commands``: whether the commands that search and verify run
    as well. ``memory``: bytes that reading may take beyond what it may for any bank.
    """

    name: str
    spoil: Spoil
    error: str
    step: str
    words: str
    verified: bool
    same: bool
    spec: str
    on_disk: Callable[[Path], object] | None
    commands: bool
    memory: int


CASES: dict[str, Case] = {}


def add(
    name: str,
    spoil: Spoil = lambda forge: None,
    *,
    error: str = "CorruptError",
    step: str = "",
    words: str = "",
    verified: bool | None = None,
    same: bool = False,
    spec: str = SPEC,
    on_disk: Callable[[Path], object] | None = None,
    commands: bool = False,
    memory: int = 0,
) -> None:
    """Adds a case; a bank that is refused is, unless ``verified`` says otherwise, not called sound either."""
    if name in CASES:
        raise ValueError(f"two cases are called {name!r}")
    sound = not error if verified is None else verified
    CASES[name] = Case(name, spoil, error, step, words, sound, same, spec, on_disk, commands, memory)


def case(**expected: Any) -> Callable[[Spoil], Spoil]:
    """Adds the decorated function as a case; its name with spaces is the case's."""

    def decorate(spoil: Spoil) -> Spoil:
        add(spoil.__name__.replace("_", " "), spoil, **expected)
        return spoil

    return decorate


def each(values: Mapping[str, Any], **expected: Any) -> Callable[[Callable[[Forge, Any], object]], object]:
    """Adds the decorated function as a case for each value, named after both."""

    def decorate(spoil: Callable[[Forge, Any], object]) -> object:
        for label, value in values.items():
            name = f"{spoil.__name__.replace('_', ' ')}: {label}"
            add(name, lambda forge, value=value: spoil(forge, value), **expected)  # type: ignore[misc]
        return spoil

    return decorate


def load_all() -> dict[str, Case]:
    """All cases, after the import of every module that has some."""
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        import_module(path.stem)
    return CASES
