from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3build_formats.bank import read_manifest
from m3build_formats.canonical_json import canonical_json
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError, M3Error, NewerFormatError
from m3build_formats.info import describe
from m3build_formats.manifest import DIGEST_TAIL_BYTES, Manifest, parse_manifest
from m3build_formats.manifest_check import file_entry_problems, manifest_problems

SCHEMA = Path(__file__).parents[2] / "formats" / "schema" / "manifest.schema.json"


@pytest.fixture(scope="session")
def manifest(shared_bank: Path) -> Manifest:
    return read_manifest(shared_bank)


def sealed(value: dict[str, Any]) -> bytes:
    """Bytes of a manifest with any content and the right digest."""
    body = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return body[:-1] + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def edited(manifest: Manifest, path: str, value: object) -> dict[str, Any]:
    """The manifest's JSON with one place replaced; a value of `...` removes it."""
    result = copy.deepcopy(manifest.to_json())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place: Any = result
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return result


def test_a_manifest_comes_back_from_its_bytes(manifest: Manifest) -> None:
    again = parse_manifest(manifest.to_bytes(), "m")
    assert again == manifest
    assert again.sha256 == manifest.sha256
    assert again.to_bytes() == manifest.to_bytes()


def test_the_digest_is_that_of_the_canonical_json_without_it(manifest: Manifest) -> None:
    value = json.loads(manifest.to_bytes())
    digest = value.pop("sha256")
    assert hashlib.sha256(canonical_json(value).encode()).hexdigest() == digest == manifest.sha256
    assert len(re.findall(rb'"sha256"', manifest.to_bytes()[-DIGEST_TAIL_BYTES:])) == 1


def test_every_flipped_bit_of_a_manifest_is_found(manifest: Manifest) -> None:
    data = bytearray(manifest.to_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            parse_manifest(bytes(data), "m")
        data[bit // 8] ^= 1 << bit % 8
    parse_manifest(bytes(data), "m")


def test_every_shortened_or_lengthened_manifest_is_found(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptError):
            parse_manifest(data[:length], "m")
    for more in (b"\n", b"\0", data):
        with pytest.raises(CorruptError):
            parse_manifest(data + more, "m")


def test_a_newer_format_version_is_refused_with_its_number(manifest: Manifest) -> None:
    with pytest.raises(NewerFormatError, match="format version 2"):
        parse_manifest(sealed(edited(manifest, "format_version", 2)), "m")


def test_an_unknown_feature_is_refused_by_name(manifest: Manifest) -> None:
    with pytest.raises(NewerFormatError, match="time-travel"):
        parse_manifest(sealed(edited(manifest, "features", ["time-travel"])), "m")


def test_another_format_is_no_bank(manifest: Manifest) -> None:
    with pytest.raises(CorruptError, match="not the manifest of a bank"):
        parse_manifest(sealed(edited(manifest, "format", "other")), "m")


def test_all_problems_are_reported_at_once_with_their_paths(manifest: Manifest) -> None:
    value = edited(manifest, "counts/documents", -1)
    value["shards"][1]["chunks"]["bytes"] = "many"
    value["model"].pop("name")
    value["files"]["codec"]["name"] = "../../etc/passwd"
    found = [problem.path for problem in manifest_problems(value)]
    assert found == [
        "counts.documents",
        "model",
        "model.name",
        "shards[1].chunks.bytes",
        "files.codec.name",
    ]


BAD: list[tuple[str, object]] = [
    ("format_version", 0),
    ("format_version", True),
    ("format_version", "1"),
    ("features", None),
    ("version", 0),
    ("version", 10**8),
    ("version", 1.0),
    ("base", {}),
    ("base", {"version": 1, "sha256": "0" * 64}),
    ("base", {"version": 0, "sha256": "x"}),
    ("created", "yesterday"),
    ("created", "2024-01-01T00:00:00+00:00"),
    ("created", "２024-01-01T00:00:00Z"),
    ("operation", ""),
    ("operation", ["compile"]),
    ("counts", []),
    ("counts/tokens", ...),
    ("counts/tokens", 2.5),
    ("counts/chunks", 3),
    ("counts/extra", "x"),
    ("sources", None),
    ("libraries", [1]),
    ("code_key", "XYZ"),
    ("code_key", "ab"),
    ("row_bytes/codes", 7),
    ("row_bytes/positions", 0),
    ("row_bytes", {"codes": 1}),
    ("model/kv_heads", 0),
    ("model/head_dim", 10**9),
    ("memory/memory_layers", [2, 0]),
    ("memory/memory_layers", [0, 0]),
    ("memory/memory_layers", [0, True]),
    ("memory/memory_layers", "0,2"),
    ("memory/memory_heads", [[0, 1]]),
    ("memory/memory_heads", [[0, 1], []]),
    ("memory/memory_heads", [[0, 1], 3]),
    ("memory/memory_heads", [[0, 2], [1]]),
    ("memory/sparse_tokens", 256),
    ("memory/reference_tokens", 256),
    ("codec/spec", None),
    ("codec/bytes_per_vector", 0),
    ("codec/compression", "4"),
    ("codec/key_error", "low"),
    ("codec/heads", [[0, 0], [0, 1]]),
    ("codec/head_dim", 5),
    ("codec/slots", 200),
    ("embedder/dim", 0),
    ("embedder/dim", 10**6),
    ("index/metric", 3),
    ("index/vectors", -1),
    ("shards", {}),
    ("shards/0", None),
    ("shards/0/rows", 41),
    ("shards/0/documents", 2**33),
    ("shards/0/embeddings", None),
    ("shards/0/extra", 1),
    ("shards/0/chunks/name", "../escape"),
    ("shards/0/chunks/name", "0" * 64 + ".index"),
    ("shards/0/chunks/sha256", "A" * 64),
    ("shards/0/chunks/bytes", 2**52),
    ("shards/0/chunks/bytes", 10),
    ("shards/0/chunks/rows", None),
    ("shards/0/chunks/rows", 10**13),
    ("shards/0/chunks/batches", None),
    ("shards/0/chunks/batches/rows", 0),
    ("shards/0/chunks/batches/rows", 10**6),
    ("shards/0/chunks/batches/rows", 1),
    ("shards/0/chunks/batches/head/bytes", 0),
    ("shards/0/chunks/batches/head/bytes", 10**9),
    ("shards/0/chunks/batches/head/digest", "00"),
    ("shards/0/chunks/batches/ends", []),
    ("shards/0/chunks/batches/ends", [10**9]),
    ("shards/0/chunks/batches/ends", [20]),
    ("shards/0/chunks/batches/ends", ["1"]),
    ("shards/0/chunks/batches/digests", []),
    ("shards/0/chunks/batches/digests", ["0" * 31 + "g"]),
    ("shards/0/chunks/batches/digests", [None]),
    ("shards/0/index/batches", {}),
    ("shards/0/index/rows", "all"),
    ("files/eval", []),
    ("files/other", None),
    ("files", None),
    ("unknown", 1),
    ("code_key", ...),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{path}={value!r:.30}" for path, value in BAD])
def test_a_field_that_is_wrong_is_named(manifest: Manifest, path: str, value: object) -> None:
    with pytest.raises(CorruptError) as caught:
        parse_manifest(sealed(edited(manifest, path, value)), "versions/x.json")
    named = path.split("/")[0] if value is not ... else path.rsplit("/", 1)[-1]
    assert named in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], True, 1.5])
def test_any_json_value_in_any_place_gives_problems_not_crashes(manifest: Manifest, value: object) -> None:
    def paths(node: Any, prefix: str) -> list[str]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        found = []
        for key, item in items:
            found += [f"{prefix}{key}", *paths(item, f"{prefix}{key}/")]
        return found

    for path in paths(manifest.to_json(), ""):
        try:
            parse_manifest(sealed(edited(manifest, path, value)), "m")
        except M3Error:
            continue


def test_the_schema_accepts_a_good_manifest(manifest: Manifest) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(manifest.to_bytes()))


@pytest.fixture(scope="session")
def schema_accepts() -> Callable[[object], bool]:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    return lambda value: bool(validator.is_valid(value))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_what_the_schema_refuses_the_reader_refuses(
    data: st.DataObject, manifest: Manifest, schema_accepts: Callable[[object], bool]
) -> None:
    value: Any = copy.deepcopy(manifest.to_json())
    place, key = value, None
    while isinstance(place, (dict, list)) and place:
        parent = place
        key = data.draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1)
        )
        place = place[key]
        if data.draw(st.booleans()):
            break
    parent[key] = data.draw(json_values)
    refused = bool(manifest_problems(value))
    accepted = schema_accepts({**value, "sha256": "0" * 64})
    assert accepted or refused


SAME_BY_SCHEMA = [
    (path, value)
    for path, value in BAD
    # What crosses fields and the order of numbers are beyond JSON Schema; 1.0 is an integer to it.
    if (path, value)
    not in [
        ("version", 1.0),
        ("base", {"version": 1, "sha256": "0" * 64}),
        ("counts/chunks", 3),
        ("row_bytes/codes", 7),
        ("row_bytes/positions", 0),
        ("memory/memory_layers", [2, 0]),
        ("memory/memory_heads", [[0, 1]]),
        ("memory/memory_heads", [[0, 2], [1]]),
        ("codec/heads", [[0, 0], [0, 1]]),
        ("codec/head_dim", 5),
        ("codec/slots", 200),
        ("shards/0/rows", 41),
        ("shards/0/chunks/bytes", 10),
        ("shards/0/chunks/batches/rows", 1),
        ("shards/0/chunks/batches/ends", []),
        ("shards/0/chunks/batches/ends", [10**9]),
        ("shards/0/chunks/batches/ends", [20]),
        ("shards/0/chunks/batches/digests", []),
    ]
]


@pytest.mark.parametrize(
    ("path", "value"), SAME_BY_SCHEMA, ids=[f"{path}={value!r:.30}" for path, value in SAME_BY_SCHEMA]
)
def test_the_schema_refuses_it_too(
    manifest: Manifest, schema_accepts: Callable[[object], bool], path: str, value: object
) -> None:
    assert not schema_accepts({**edited(manifest, path, value), "sha256": "0" * 64})


def test_a_file_entry_comes_back_from_its_json(manifest: Manifest) -> None:
    for kind, entry in manifest.all_files().values():
        value = json.loads(canonical_json(entry.to_json()))
        assert file_entry_problems(value, kind) == []
        assert FileEntry.from_json(value) == entry


def test_a_damaged_file_entry_has_problems(manifest: Manifest) -> None:
    entry = manifest.shards[0].chunks.to_json()
    assert file_entry_problems(entry, "documents") != []
    assert file_entry_problems({**entry, "rows": -1}, "chunks") != []
    assert file_entry_problems(None, "chunks") != []


def test_a_bank_without_memories_is_valid(manifest: Manifest) -> None:
    value = edited(manifest, "shards/0/memories", None)
    value["shards"][1]["memories"] = None
    value["memory"].update(memory_layers=[], memory_heads=[])
    value["row_bytes"] = {"codes": 0, "positions": 0}
    assert manifest_problems(value) == []


def test_shards_with_and_without_memories_stand_side_by_side(manifest: Manifest) -> None:
    value = edited(manifest, "shards/0/memories", None)
    rows = value["shards"][0]["rows"]
    assert manifest_problems(value) == []
    assert Manifest.from_json(value).cold == rows == describe(Manifest.from_json(value))["cold"]
    assert manifest.cold == 0


@pytest.mark.parametrize("cold", [0, 39, 48])
def test_cold_rows_are_at_least_those_of_shards_without_memories_and_at_most_all(
    manifest: Manifest, cold: int
) -> None:
    value = edited(manifest, "shards/0/memories", None)
    for count, good in ((40, True), (47, True), (cold, False)):
        value["counts"] = {**value["counts"], "cold": count}
        assert [problem.path for problem in manifest_problems(value)] == ([] if good else ["counts.cold"])


def test_info_has_the_facts_and_counts_each_file_once(manifest: Manifest) -> None:
    facts = describe(manifest)
    sizes = {name: entry.bytes for name, (_, entry) in manifest.all_files().items()}
    assert facts["bytes"]["total"] == sum(sizes.values())
    assert facts["bytes"]["text"] == sum(
        size for name, size in sizes.items() if ".chunks." in name or ".documents." in name
    )
    assert facts["chunks"] == 47
    assert facts["unlisted"] == 0
    assert facts["shards"] == 2
    assert facts["model"]["memory_layers"] == [0, 2]
    assert facts["codec"]["value_error"] is None
    assert json.loads(json.dumps(facts)) == facts
