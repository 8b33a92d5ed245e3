"""The evaluation file of a version: one canonical JSON value, a record of what was measured and how."""

from __future__ import annotations

import os
from typing import Any, Final

from m3build_formats.atomic import open_directory, resource_errors
from m3build_formats.canonical_json import canonical_json, parse_json
from m3build_formats.data_directory import FileTarget
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError, ResourceError
from m3build_formats.layout import DATA_DIRECTORY, MAX_EVAL_BYTES
from m3build_formats.manifest import Manifest
from m3build_formats.mapped_file import MappedFile

# Of an evaluation as this project writes it, what fits a few lines.
SHOWN: Final = (
    "created",
    "model",
    "documents",
    "tokens",
    "loss",
    "gain",
    "gain_over_random",
    "conclusion",
    "retrieval",
    "require",
    "passed",
)


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


def load_evaluation(path: str | os.PathLike[str], manifest: Manifest) -> object:
    """The evaluation of a version of the bank at ``path`` without opening its other files; None where it has
    none. Raises CorruptError, ResourceError."""
    entry = manifest.files.eval
    if entry is None:
        return None
    if entry.bytes > MAX_EVAL_BYTES:
        raise CorruptError(f"{entry.name}: has {entry.bytes} bytes, format 1 allows {MAX_EVAL_BYTES}")
    with resource_errors(f"cannot read {os.fspath(path)}"):
        bank = open_directory(os.fspath(path), follow=True)
        try:
            directory = open_directory(DATA_DIRECTORY, bank)
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptError(
                f"{os.fspath(path)}: the bank has no directory {DATA_DIRECTORY}/ (or it is a link)"
            ) from None
        finally:
            os.close(bank)
    try:
        return read_evaluation(entry, MappedFile(entry, directory).whole())
    finally:
        os.close(directory)


def evaluation_facts(path: str | os.PathLike[str], manifest: Manifest) -> dict[str, Any] | None:
    """What `m3build info` says about an evaluation: those of `SHOWN` that it has; ``{"problem": …}`` where it
    cannot be read; None where there is none."""
    try:
        value = load_evaluation(path, manifest)
    except (CorruptError, ResourceError) as error:
        return {"problem": str(error)}
    if manifest.files.eval is None:
        return None
    return {key: value[key] for key in SHOWN if key in value} if isinstance(value, dict) else {}
