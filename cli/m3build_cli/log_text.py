"""The history of a bank, for people."""

from __future__ import annotations

from collections.abc import Sequence

from m3build.plan import in_decimal_units
from m3build_cli.printable import printable
from m3build_formats.history import UnreadableVersion, Version

_HEAD = ("version", "created", "operation", "documents", "chunks", "bytes", "sha256")
_LEFT = frozenset({"created", "operation", "sha256"})
_SHORT = 12


def describe_versions(records: Sequence[Version | UnreadableVersion], total: int) -> str:
    """A line for each version, under a line of titles; ``total`` is how many versions there are."""
    rows = {item.version: _cells(item) for item in records if isinstance(item, Version)}
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows.values(), strict=True)]
    lines = [f"{_line(_HEAD, widths)}  change"]
    for item in records:
        if isinstance(item, Version):
            lines.append(f"{_line(rows[item.version], widths)}  {_change(item)}")
        else:
            lines.append(f"{item.version:>{widths[0]}}  cannot be read: {printable(str(item.error), 300)}")
    if total > len(records):
        lines.append(f"{'…':>{widths[0]}}  and {total - len(records):,} older")
    return "\n".join(lines)


def _cells(item: Version) -> tuple[str, ...]:
    return (
        str(item.version),
        item.created,
        printable(item.operation, 20),
        f"{item.documents:,}",
        f"{item.chunks:,}",
        in_decimal_units(item.bytes),
        item.sha256[:_SHORT],
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(_HEAD, cells, widths, strict=True)
    return "  ".join(
        f"{cell:<{width}}" if name in _LEFT else f"{cell:>{width}}" for name, cell, width in pairs
    )


def _change(item: Version) -> str:
    if item.base is None:
        return "first version"
    if item.change is None:
        words = f"base version {item.base.version} cannot be compared with"
    else:
        counts = {"documents": item.change.documents, "chunks": item.change.chunks}
        words = (
            ", ".join(f"{name} {count:+,}" for name, count in counts.items() if count) or "counts as before"
        )
        if item.base.version != item.version - 1:
            words += f" against version {item.base.version}"
    return f"as version {item.restores}; {words}" if item.restores is not None else words
