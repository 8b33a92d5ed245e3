"""A difference as Markdown for people: at most some 40 lines with the usual limit, whatever changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from m3build.plan import in_decimal_units
from m3build_cli.printable import code
from m3build_formats.diff_report import Difference, Listed, Setting, Side

_SHOWN_SETTINGS = 3
_FIRST_SETTINGS = ("model.name", "model.fingerprint", "codec.spec", "embedder.name", "index.type")
_COUNTS = {
    "tokens": "tokens",
    "duplicates": "duplicates",
    "near_duplicates": "near-duplicates",
    "empty_documents": "empty documents",
    "rejects": "rejects",
    "unsupported_files": "files of other kinds",
    "cold": "chunks without a memory yet",
}
_NAME_WIDTH = 100
_VALUE_WIDTH = 40


def describe_difference(difference: Difference, limit: int) -> str:
    """The whole text; names at most ``limit`` documents."""
    if difference.same and difference.before is not None:
        return _no_difference(difference.before, difference.after)
    parts = [
        [f"### {_title(difference.before, difference.after)}"],
        ["| | before | after | change |", "|:--|--:|--:|:--|", *_table(difference)],
        [_sharing(difference)],
        list(_settings(difference.settings)),
        list(_documents(difference, limit)),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _no_difference(before: Side, after: Side) -> str:
    if before.facts["sha256"] == after.facts["sha256"]:
        return f"No difference: both are version {after.version} of {code(after.bank, _NAME_WIDTH)}"
    return f"No difference: {_title(before, after)} hold the same"


def _title(before: Side | None, after: Side) -> str:
    bank = code(after.bank, _NAME_WIDTH)
    if before is None:
        return f"{bank}: version {after.version}, made from none"
    if os.path.realpath(before.bank) == os.path.realpath(after.bank):
        return f"{bank}: versions {before.version} and {after.version}"
    return f"{code(before.bank, _NAME_WIDTH)} version {before.version} and {bank} version {after.version}"


def _table(difference: Difference) -> Iterator[str]:
    before = difference.before.facts if difference.before else None
    after = difference.after.facts
    documents, chunks = difference.documents, difference.chunks
    notes = [_plus_minus(documents.added, documents.removed)]
    notes += [f"{documents.changed.total:,} changed"] * bool(documents.changed.total)
    notes += [f"{documents.other_metadata:,} with other metadata alone"] * bool(documents.other_metadata)
    yield _row("documents", before, after, _counts(notes), "documents")
    notes = [_plus_minus(chunks.added, chunks.removed)]
    notes += [f"{chunks.encoded_anew:,} encoded anew"] * bool(chunks.encoded_anew)
    yield _row("chunks", before, after, _counts(notes), "chunks")
    for key, name in _COUNTS.items():
        if (change := after[key] - (before[key] if before else 0)) != 0:
            yield _row(name, before, after, f"{change:+,}", key)
    for kind, size in after["bytes"].items():
        old = before["bytes"][kind] if before else 0
        if size != old or kind == "total":
            cells = [in_decimal_units(old) if before else "", in_decimal_units(size)]
            yield f"| bytes, {kind} | {cells[0]} | {cells[1]} | {_signed_bytes(size - old)} |"
    for section, key, name in (
        ("codec", "key_error", "error of keys"),
        ("codec", "value_error", "error of values"),
        ("index", "recall", "recall of the index"),
    ):
        old, new = before[section].get(key) if before else None, after[section].get(key)
        if old is not None or new is not None:
            change = f"{new - old:+.4f}" if None not in (old, new) and new != old else ""
            yield f"| {name} | {_decimal(old)} | {_decimal(new)} | {change} |"


def _row(name: str, before: Any, after: Any, note: str, key: str) -> str:
    return f"| {name} | {format(before[key], ',') if before else ''} | {after[key]:,} | {note} |"


def _counts(notes: list[str]) -> str:
    return ", ".join(note for note in notes if note)


def _plus_minus(added: Listed, removed: Listed) -> str:
    signs = [f"+{added.total:,}"] * bool(added.total) + [f"-{removed.total:,}"] * bool(removed.total)
    return " ".join(signs)


def _signed_bytes(change: int) -> str:
    return f"{'+' if change > 0 else '-'}{in_decimal_units(abs(change))}" if change else ""


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _sharing(difference: Difference) -> str:
    sharing = difference.sharing
    made, left = sharing.files_after - sharing.files_shared, sharing.files_before - sharing.files_shared
    return (
        f"Files: {sharing.files_shared:,} shared ({in_decimal_units(sharing.bytes_shared)}), {made:,} new "
        f"({in_decimal_units(sharing.bytes_after - sharing.bytes_shared)}), {left:,} no longer named "
        f"({in_decimal_units(sharing.bytes_before - sharing.bytes_shared)})"
    )


def _settings(settings: tuple[Setting, ...]) -> Iterator[str]:
    def rank(setting: Setting) -> tuple[bool, bool, str]:
        first = setting.path not in _FIRST_SETTINGS
        return first, setting.path.startswith(("libraries.", "code_key")), setting.path

    ordered = sorted(settings, key=rank)
    for setting in ordered[:_SHOWN_SETTINGS]:
        yield f"- {code(setting.path)}: {_value(setting.before)} to {_value(setting.after)}"
    if len(ordered) > _SHOWN_SETTINGS:
        yield f"- and {len(ordered) - _SHOWN_SETTINGS:,} more settings"


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return code(text, _VALUE_WIDTH)


def _documents(difference: Difference, limit: int) -> Iterator[str]:
    documents = difference.documents
    kinds = {"changed": documents.changed, "added": documents.added, "removed": documents.removed}
    shares = _shares([len(listed.ids) for listed in kinds.values()], limit)
    more = {}
    for (name, listed), share in zip(kinds.items(), shares, strict=True):
        for identity in listed.ids[:share]:
            yield f"- {name} {code(identity)}"
        more[name] = listed.total - share
    if limit and (rest := sum(more.values())):
        yield f"- and {rest:,} more: " + ", ".join(f"{left:,} {name}" for name, left in more.items() if left)


def _shares(wanted: list[int], limit: int) -> list[int]:
    """``limit`` lines given out one by one in turn, to each as many as it wants at most."""
    shares = [0] * len(wanted)
    while sum(shares) < min(limit, sum(wanted)):
        for place, most in enumerate(wanted):
            if shares[place] < most and sum(shares) < limit:
                shares[place] += 1
    return shares
