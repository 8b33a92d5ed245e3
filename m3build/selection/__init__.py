"""Which tokens of a reference a memory keeps: rules by name, one class and one file each (Memory³ §3.3).

Importing the package is light; a rule's module, and with it torch, is imported when the rule is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from m3build.selection.names import RULES
from m3build_formats.errors import UsageError

if TYPE_CHECKING:
    from m3build.selection.base import Selector

__all__ = ["check_selection", "get_selector", "selection_names"]


def selection_names() -> tuple[str, ...]:
    """Names of all rules, the default first."""
    return tuple(RULES)


def check_selection(name: str) -> str:
    """The name itself. Raises UsageError, listing the rules, if there is none of that name."""
    if name not in RULES:
        raise UsageError(f"no selection rule '{name}'; there are {', '.join(RULES)}.")
    return name


def get_selector(name: str) -> Selector:
    """The rule of that name. Raises UsageError, listing the rules, if there is none."""
    module, rule = RULES[check_selection(name)]
    selector: Selector = getattr(import_module(f"m3build.selection.{module}"), rule)()
    return selector
