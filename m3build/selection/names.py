"""Which selection rules there are, by name; no torch, so that options can be checked and listed without
it."""

from __future__ import annotations

RULES: dict[str, tuple[str, str]] = {
    "memory3": ("memory3", "Memory3"),
    "memory3-exp": ("memory3_exp", "Memory3Exp"),
    "value-norm": ("value_norm", "ValueNorm"),
    "observed": ("observed", "Observed"),
    "key-norm": ("key_norm", "KeyNorm"),
    "random": ("random", "Random"),
    "first": ("first", "First"),
    "last": ("last", "Last"),
}
"""Name of each rule → (module in this package, class). A new rule is one file, one class and one line
here."""
