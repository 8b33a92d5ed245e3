"""Every field of a manifest with every kind of wrong value, left out, and with unknown neighbours.

The values are tried on every field of the sound bank's manifest, of lists on the first item. One of them may
by chance be right for a field; `RIGHT` says which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from forge import Forge, seal

from m3build_formats.errors import CorruptError, M3Error, NewerFormatError
from m3build_formats.info import describe
from m3build_formats.manifest import Manifest, parse_manifest

WRONG: list[object] = [
    None, True, False, 0, -1, 1, 255, 256, 2**53 - 1, 0.5, -0.0, 1e300, "", "x", "1", "0" * 64, "\n", [],
    [[]], [None], [0], [1, 0], {}, {"a": 1},
]  # fmt: skip
OPEN = ("sources", "chunker", "libraries")
REQUIRED = {
    "model": {"name", "fingerprint", "kv_heads", "head_dim"},
    "memory": {"memory_layers", "memory_heads", "sparse_tokens", "reference_tokens"},
    "codec": {"spec", "bytes_per_vector", "compression", "key_error", "value_error"},
    "embedder": {"name", "dim"},
    "index": {"type", "metric", "vectors"},
}
"""Of the sections that may have more keys: those that a manifest must have."""

Place = tuple[str | int, ...]
Right = Callable[[object], bool]


def integer(low: int, high: int) -> Right:
    return lambda value: type(value) is int and low <= value <= high


def text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def number(value: object) -> bool:
    return type(value) in (int, float)


def anything(value: object) -> bool:
    return True


def nothing(value: object) -> bool:
    return value is None


count = integer(0, 2**53 - 1)
a_row_count = integer(0, 1 << 40)
RIGHT: list[tuple[str, Right]] = [
    (r"operation|model\.(name|fingerprint)|codec\.spec|embedder\.name|index\.(type|metric)", text),
    (r"version", integer(1, 99_999_999)),
    (r"base|files\.\w+|shards\.0\.memories", nothing),
    (r"code_key", lambda value: value == "0" * 64),
    (r"features", lambda value: value == []),
    (r"counts\.(?!chunks)\w+", count),
    (r"model\.kv_heads", integer(2, 4096)),
    (r"memory\.reference_tokens", integer(1, 255)),
    (r"codec\.compression", number),
    (r"codec\.(key|value)_error", lambda value: value is None or number(value)),
    (r"embedder\.dim", integer(1, 65_536)),
    (r"index\.vectors", a_row_count),
    (r"model\.dtype|codec\.(scope|nominal_bits)|index\.probes", anything),
    (r"embedder\.(metric|candidates|sample_texts|k1|b)", anything),
    # Equal in Python, and refused by whoever reads the codec.
    (r"codec\.heads\.0\.[01]", lambda value: value == 0),
    # Whether the file has that size, that head and such batches is looked at when it is opened.
    (r".*\.head\.bytes", integer(16, 1 << 20)),
    (r".*\.bytes", integer(0, 1 << 50)),
    (r".*\.ends\.0", integer(16, 1 << 20)),
    (r".*\.batches\.rows", integer(1, 65_536)),
    (r"(shards\.0\.index|files\.(rejects|eval))\.rows", lambda value: value is None or a_row_count(value)),
]  # fmt: skip


def places(value: object, place: Place = ()) -> Iterator[Place]:
    """The place of every value in a JSON value, of lists only the first item's."""
    if place:
        yield place
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def words(place: Place) -> str:
    return ".".join(map(str, place))


def at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def sealed(manifest: dict[str, Any]) -> bytes:
    return seal(json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def with_value(manifest: dict[str, Any], place: Place, value: object) -> bytes:
    """The bytes of the manifest with another value at a place."""
    copy = deepcopy(manifest)
    at(copy, place[:-1])[place[-1]] = value
    return sealed(copy)


def may_be(place: Place, value: object) -> bool:
    """Whether a value is right at a place; the first rule that knows the place says so."""
    return next((right(value) for rule, right in RIGHT if re.fullmatch(rule, words(place))), False)


def group_of(place: Place) -> str:
    """Fields are tried in groups: a section of the manifest, or a kind of file and what its entry says."""
    if place[0] == "shards" and len(place) >= 3:
        return f"shards.{place[2]}"
    return words(place[:2]) if place[0] == "files" else str(place[0])


GROUPS = [
    "format", "format_version", "features", "version", "base", "created", "operation", "counts", "model",
    "memory", "codec", "embedder", "index", "code_key", "row_bytes", "shards", "shards.rows",
    "shards.documents", "shards.chunks", "shards.documents_file", "shards.memories", "shards.embeddings",
    "shards.index", "files", "files.codec", "files.embedder", "files.rejects", "files.eval",
]  # fmt: skip


def parsed_or_error(data: bytes) -> Manifest | M3Error:
    try:
        return parse_manifest(data, "versions/00000001.json")
    except (CorruptError, NewerFormatError) as error:
        return error


@pytest.fixture
def manifest(sound: dict[str, Forge]) -> dict[str, Any]:
    return sound["SQfp16"].copy().manifest


def test_the_groups_are_all_fields_but_open_ones(manifest: dict[str, Any]) -> None:
    assert {group_of(place) for place in places(manifest)} - set(OPEN) == set(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_wrong_values_are_refused_in(group: str, manifest: dict[str, Any]) -> None:
    for place in [place for place in places(manifest) if group_of(place) == group]:
        for value in WRONG:
            parsed = parsed_or_error(with_value(manifest, place, value))
            if isinstance(parsed, M3Error):
                assert len(str(parsed)) < 1000
                newer = isinstance(parsed, NewerFormatError)
                assert not newer or group in ("format_version", "features")
                continue
            same = type(value) is type(at(manifest, place)) and value == at(manifest, place)
            assert same or may_be(place, value), (words(place), value)
            assert Manifest.from_json(parsed.to_json()) == parsed
            describe(parsed)


@pytest.mark.parametrize("group", GROUPS)
def test_missing_and_unknown_fields_are_refused_in(group: str, manifest: dict[str, Any]) -> None:
    for place in [place for place in places(manifest) if group_of(place) == group]:
        copy = deepcopy(manifest)
        del at(copy, place[:-1])[place[-1]]
        if place[0] in REQUIRED and len(place) == 2 and place[1] not in REQUIRED[str(place[0])]:
            describe(parse_manifest(sealed(copy), "m"))
        elif place[-1] != 0 or place[0] != "codec":
            with pytest.raises(CorruptError):
                parse_manifest(sealed(copy), "m")
        closed = place[0] not in (*REQUIRED, *OPEN, "counts")
        if closed and isinstance(at(manifest, place), dict):
            with pytest.raises(CorruptError, match="unknown key 'x'"):
                parse_manifest(with_value(manifest, (*place, "x"), 1), "m")
