"""The JavaScript reader refuses what SPEC.md tells it to, with the exit codes of README.md."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import any_codec_bank
import numpy as np
import pyarrow as pa
import pytest
from any_codec_bank import HEADS, SLOTS, build
from node_reader import AN_ID, flip, needs_node, node, refused, seal, write_sealed

from m3build.codec.codec import Codec
from m3build_formats import arrays_file, shard_tables
from m3build_formats.arrays_file import write_arrays
from m3build_formats.arrow_file import write_table
from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.errors import CorruptError, M3Error
from m3build_formats.shard_schema import DOCUMENTS_SCHEMA
from m3build_formats.verify import verify

pytestmark = needs_node


def test_a_flipped_bit_in_the_manifest_is_corrupt(bank: Path) -> None:
    manifest = bank / "versions" / "00000001.json"
    bits = 8 * manifest.stat().st_size
    for bit in [3, bits // 3, bits // 2, bits - 8 * 78 + 1, bits - 8 * 20, bits - 1]:
        flip(manifest, bit)
        refused(5, bank)
        flip(manifest, bit)
    assert node(bank).returncode == 0


def test_a_flipped_bit_in_a_table_is_corrupt(bank: Path) -> None:
    manifest = read_manifest(bank)
    shard = manifest.shards[0]
    for entry in (shard.chunks, shard.documents_file, shard.memories, shard.embeddings, manifest.files.codec):
        assert entry is not None
        assert entry.batches is not None
        first, last = entry.batches.head_bytes, entry.batches.ends[-1]
        for byte in (first - 3, last - 1):
            flip(bank / "data" / entry.name, 8 * byte + 1)
            assert entry.name in refused(5, bank, "show", AN_ID)
            flip(bank / "data" / entry.name, 8 * byte + 1)
    assert node(bank, "show", AN_ID).returncode == 0


def missing(path: Path) -> None:
    path.unlink()


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [missing, shorter, linked, a_pipe])
def test_a_file_that_is_missing_shorter_or_no_file_is_corrupt(
    bank: Path, harm: Callable[[Path], None]
) -> None:
    name = read_manifest(bank).shards[1].index.name  # a file that nothing reads
    harm(bank / "data" / name)
    assert name in refused(5, bank)


def with_metadata(schema: Any) -> Any:
    return schema.with_metadata({"key": "value"})


def nullable(schema: Any) -> Any:
    return pa.schema([schema.field(0).with_nullable(True), *list(schema)[1:]])


def renamed(schema: Any) -> Any:
    return pa.schema([schema.field(0).with_name("other"), *list(schema)[1:]])


@pytest.mark.parametrize("change", [with_metadata, nullable, renamed])
def test_a_table_of_another_schema_is_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(shard_tables, "DOCUMENTS_SCHEMA", change(DOCUMENTS_SCHEMA))
    build(tmp_path / "bank", "SQ8")
    assert "documents.arrow" in refused(5, tmp_path / "bank", "--json")


def test_a_table_with_compressed_buffers_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_file, compressed = pa.ipc.new_file, pa.ipc.IpcWriteOptions(compression="lz4")
    monkeypatch.setattr(
        pa.ipc, "new_file", lambda sink, schema, options: new_file(sink, schema, options=compressed)
    )
    build(tmp_path / "bank", "SQ8")
    assert "is compressed" in refused(5, tmp_path / "bank", "--json")


def with_a_null(batch: Any) -> Any:
    columns = [pa.array([None, *column.to_pylist()[1:]], column.type) for column in batch.columns]
    return pa.record_batch(columns, schema=batch.schema)


def test_a_table_with_a_null_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nulls(sink: Any, schema: Any, batches: Iterable[Any], rows: int) -> Any:
        return write_table(sink, schema, map(with_a_null, batches), rows)

    monkeypatch.setattr(shard_tables, "write_table", write_nulls)
    build(tmp_path / "bank", "SQ8")
    assert "nulls" in refused(5, tmp_path / "bank", "--json")


def test_arrays_in_disorder_are_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_reversed(sink: Any, schema: Any, batches: Iterable[Any], rows: int) -> Any:
        return write_table(sink, schema, reversed(list(batches)), rows)

    monkeypatch.setattr(arrays_file, "write_table", write_reversed)
    build(tmp_path / "bank", "SQ8")
    assert "out of order" in refused(5, tmp_path / "bank", "show", AN_ID)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mean", lambda array: array[..., :-1]),
        ("mean", lambda array: array.astype(np.float64)),
        ("scale", lambda array: -array),
        ("scalar_range", lambda array: array * np.float32(np.inf)),
        ("other", lambda array: np.zeros(3, np.float32)),
    ],
)
def test_a_codec_array_that_does_not_fit_its_spec_is_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]
) -> None:
    def write_changed(target: Any, kind: str, arrays: dict[str, Any]) -> Any:
        return write_arrays(target, kind, {**arrays, name: change(arrays.get(name))})

    monkeypatch.setattr(any_codec_bank, "write_arrays", write_changed)
    build(tmp_path / "bank", "SQ8")
    assert name in refused(5, tmp_path / "bank", "show", AN_ID)
    with open_bank(tmp_path / "bank") as opened, pytest.raises(CorruptError, match=name):
        Codec.from_arrays(opened.codec_arrays(), opened.manifest.codec)


@pytest.mark.parametrize(
    "positions", [[5, 4, 6, 7], [1, 2, 2, 3], [1, 2, 3, 200], [255, 1, 2, 3], [1, 2, 3, 255]]
)
def test_kept_positions_against_the_rules_are_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positions: list[int]
) -> None:
    make = any_codec_bank.memory_rows

    def spoiled(*arguments: Any) -> Any:
        rows = make(*arguments)
        place = rows.shape[1] - len(HEADS) * SLOTS
        rows[0, :place] = 1  # so that an unused slot has codes
        rows[0, place:] = [*positions, 1, 2, 3, 4, 1, 2, 3, 4]
        return rows

    monkeypatch.setattr(any_codec_bank, "memory_rows", spoiled)
    build(tmp_path / "bank", "SQ8")
    assert "kept positions" in refused(5, tmp_path / "bank", "show", AN_ID)
    assert verify(tmp_path / "bank").problems


def test_an_unknown_feature_is_refused_by_name(bank: Path) -> None:
    seal(bank, lambda value: value.update(features=["time-travel"]))
    assert "time-travel" in refused(4, bank)


def test_a_newer_format_is_refused_by_number_before_anything_else(bank: Path) -> None:
    path = bank / "versions" / "00000001.json"
    write_sealed(path, '{"features":[],"format":"m3build-bank","format_version":2}')
    assert "format 2" in refused(4, bank)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda value: value.update(format="other"),
    "format 0": lambda value: value.update(format_version=0),
    "another number": lambda value: value.update(version=2),
    "an integer with a fraction": lambda value: value.update(version=1.0),
    "an integer out of range": lambda value: value["counts"].update(tokens=2**53),
    "a lone number": lambda value: value.update(sources=3),
    "another field": lambda value: value.update(extra=1),
    "a second digest": lambda value: value.update(sha256="0" * 64),
    "a missing field": lambda value: value.pop("created"),
    "another sum of rows": lambda value: value["counts"].update(chunks=1),
    "heads in disorder": lambda value: value["memory"].update(memory_heads=[[2, 0], [1]]),
    "a head that the model lacks": lambda value: value["model"].update(kv_heads=2),
    "a codec for other heads": lambda value: value["codec"].update(heads=[[1, 0], [1, 1], [3, 1]]),
    "a codec of other slots": lambda value: value["codec"].update(slots=5),
    "another row size": lambda value: value["row_bytes"].update(codes=1),
    "a name outside data": lambda value: value["shards"][0]["index"].update(name="../../etc/passwd"),
    "more cold rows than rows": lambda value: value["counts"].update(cold=1 << 40),
    "no cold row, and a shard without memories": lambda value: (
        value["counts"].update(cold=0),
        value["shards"][0].update(memories=None),
    ),
    "batches in disorder": lambda value: value["shards"][0]["chunks"]["batches"].update(ends=[9]),
    "too deep": lambda value: value.update(libraries=json.loads('{"a":' * 32 + "1" + "}" * 32)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_manifest_against_the_rules_is_refused_by_both_readers(
    bank: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    seal(bank, edit)
    with pytest.raises(M3Error) as caught:
        open_bank(bank)
    refused(caught.value.exit_code, bank)


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', '{"a":NaN}', '{"a":1e999}', '{"a":"\\ud800"}', '{"a":01}', "{'a':1}", '{"a":1}}'],
)
def test_text_that_is_not_canonical_json_is_corrupt(bank: Path, text: str) -> None:
    write_sealed(bank / "versions" / "00000001.json", text)
    assert "JSON" in refused(5, bank)


@pytest.mark.parametrize("setting", [{"spec": "LSQ3x8"}, {"spec": "PQ8x2"}, {"scope": "model"}])
def test_a_codec_that_the_format_does_not_have_is_refused_by_name(
    bank: Path, setting: dict[str, str]
) -> None:
    seal(bank, lambda value: value["codec"].update(setting))
    [name] = setting.values()
    assert name in refused(5, bank, "show", AN_ID)
