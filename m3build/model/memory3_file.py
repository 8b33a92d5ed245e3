"""``memory3.json`` in a model directory: how a model was trained to read memories, for whoever writes them.
Every key is optional.

Only types are checked here; whether the model has the layers and heads is for
:func:`m3build.model.shape.resolve_shape` to say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3build_formats.atomic import resource_errors
from m3build_formats.errors import UsageError

MEMORY3_FILE = "memory3.json"
MEMORY3_KEYS = (
    "memory_layers",
    "memory_heads",
    "sparse_tokens",
    "reference_tokens",
    "reference_bos",
    "selection",
    "query_tokens",
    "references",
    "continuations",
    "codec",
)
_MAX_BYTES = 1 << 20


def read_memory3(directory: Path) -> dict[str, Any]:
    """What ``memory3.json`` in a model directory says; {} if there is none. Heads come with integer layers.

    Raises UsageError, naming the key, for one that is unknown or has the wrong type.
    """
    path = directory / MEMORY3_FILE
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path}: over {_MAX_BYTES} bytes; this is no memory3.json.")
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(stored, dict):
        raise UsageError(f"{path}: holds {_kind(stored)} where an object was expected.")
    for key, value in stored.items():
        if key not in MEMORY3_KEYS:
            raise UsageError(f"{path}: unknown key '{key}'; there are {', '.join(MEMORY3_KEYS)}.")
        _check_stored(path, key, value)
    return stored


def write_memory3(directory: Path, values: Mapping[str, Any]) -> Path:
    """Make ``memory3.json`` in a model directory say these, and nothing else; returns its path. It is there
    whole or as it was. Raises UsageError for values that could not be read back, ResourceError."""
    path = directory / MEMORY3_FILE
    for key, value in values.items():
        if key not in MEMORY3_KEYS:
            raise UsageError(f"{path}: unknown key '{key}'; there are {', '.join(MEMORY3_KEYS)}.")
        _check_stored(path, key, value)
    temporary = path.with_name(f".{MEMORY3_FILE}.{os.getpid()}")
    with resource_errors(f"writing {path}"):
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    return path


def asked_codec(text: str, directory: Path | None) -> str:
    """A codec string or preset, where ``auto`` is the codec that ``memory3.json`` in the model's directory
    names; "auto" still where it names none, or no directory is known. Raises UsageError as
    :func:`read_memory3` does."""
    if text != "auto" or directory is None:
        return text
    return str(read_memory3(directory).get("codec", "auto"))


def _check_stored(path: Path, key: str, value: Any) -> None:
    def is_whole(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool)

    def are_whole(items: Any) -> bool:
        return isinstance(items, list) and all(map(is_whole, items))

    match key:
        case "memory_layers":
            right, expected = are_whole(value), "a list of integers"
        case "memory_heads":
            right = isinstance(value, dict) and all(map(are_whole, value.values()))
            expected = 'an object such as {"4": [0, 1]}'
        case "reference_bos" | "selection" | "codec":
            right, expected = isinstance(value, str), "a string"
        case "continuations":
            right, expected = isinstance(value, bool), "true or false"
        case "sparse_tokens":
            right, expected = is_whole(value) or value == "all", 'an integer or "all"'
        case _:
            right, expected = is_whole(value), "an integer"
    if not right:
        raise UsageError(f"{path}: {key} must be {expected}, not {json.dumps(value)[:80]}.")


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
