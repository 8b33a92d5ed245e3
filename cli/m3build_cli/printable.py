"""Text from a bank, made fit for one line of a terminal or of Markdown."""

from __future__ import annotations

WIDTH = 80


def printable(text: str, width: int = WIDTH) -> str:
    """``text`` with everything escaped that moves a cursor, breaks a line or turns writing around, and its
    middle left out where it is longer than ``width`` characters."""
    # Cut first, and generously: an escape is at most ten characters, and a text may be very long.
    if len(text) > 2 * width:
        text = text[:width] + "…" + text[-width:]
    shown = escaped(text)
    if len(shown) > width:
        kept = width - 1
        shown = shown[: kept - kept // 2] + "…" + shown[len(shown) - kept // 2 :]
    return shown


def escaped(text: str) -> str:
    """``text``, however long, with everything escaped that moves a cursor, breaks a line or a field, or turns
    writing around."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def code(text: str, width: int = WIDTH) -> str:
    """``printable`` text as a code span of Markdown, whatever backticks it holds."""
    shown = printable(text, width)
    fence = "`"
    while fence in shown:
        fence += "`"
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
