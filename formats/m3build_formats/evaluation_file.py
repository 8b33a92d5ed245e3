"""The evaluation file of a version: one canonical JSON value, a record of what was measured and how."""

from __future__ import annotations

from m3build_formats.canonical_json import canonical_json, parse_json
from m3build_formats.data_directory import FileTarget
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError
from m3build_formats.layout import MAX_EVAL_BYTES


def write_evaluation(target: FileTarget, value: object) -> FileEntry:
    """Writes a JSON value; raises ValueError for one without a canonical form or over ``MAX_EVAL_BYTES``."""
    data = canonical_json(value).encode() + b"\n"
    if len(data) > MAX_EVAL_BYTES:
        raise ValueError(f"an evaluation of {len(data)} bytes, format 1 allows {MAX_EVAL_BYTES}")
    return target.add_file("eval", data)


def read_evaluation(entry: FileEntry, data: memoryview) -> object:
    """The JSON of an evaluation file whose SHA-256 was checked; raises CorruptError."""
    if data.nbytes > MAX_EVAL_BYTES:
        raise CorruptError(f"{entry.name}: has {data.nbytes} bytes, format 1 allows {MAX_EVAL_BYTES}")
    try:
        return parse_json(data)
    except ValueError as error:
        raise CorruptError(f"{entry.name}: {error}") from None
