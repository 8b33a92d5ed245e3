"""Banks made by someone who can hash: every digest is right, and the contents are an attack."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import CorruptError, M3Error, ResourceError
from m3build_formats.verify import verify


def reseal(bank: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest of version 1 and gives it the digest of its new contents."""
    path = bank / "versions/00000001.json"
    value = json.loads(path.read_bytes())
    value.pop("sha256")
    edit(value)
    seal_text(bank, json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def seal_text(bank: Path, text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    path = bank / "versions/00000001.json"
    path.unlink()
    path.write_bytes(body[:-1] + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode())


def everything(bank: Path) -> None:
    with open_bank(bank) as opened:
        list(opened.rejects())
        opened.codec_arrays()
        opened.embedder_arrays()
        opened.evaluation()
        for shard in opened.shards:
            list(shard.chunks())
            list(shard.document_rows())
            list(shard.memory_batches())
            list(shard.embeddings())
            shard.index_bytes()
        opened.locate([bytes(32)])


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        "..",
        "",
        "\0",
        "x" * 5000,
        "0" * 64 + ".chunks.arrow\0",
        "0" * 64 + "/../x.chunks.arrow",
        "0" * 64 + ".CHUNKS.ARROW",
        " " + "0" * 64 + ".chunks.arrow",
    ],
)
def test_a_name_that_leads_elsewhere_is_never_opened(
    bank: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = os.open
    reseal(bank, lambda value: value["shards"][0]["chunks"].update(name=name))
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **named: (opened.append(str(path)), real(path, *rest, **named))[1]
    )
    for call in (open_bank, read_manifest):
        with pytest.raises(CorruptError, match="name"):
            call(bank)
    assert not verify(bank).ok
    assert name not in opened


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["shards"][0].update(rows=2**32 - 1),
        lambda value: value["shards"][0]["memories"].update(rows=2**39),
        lambda value: value["embedder"].update(dim=65536),
        lambda value: value["embedder"].update(dim=7),
        lambda value: value["row_bytes"].update(codes=2**28),
        lambda value: value["memory"].update(sparse_tokens=255),
        lambda value: value["codec"].update(bytes_per_vector=2**28),
        lambda value: value["shards"][0]["chunks"].update(bytes=2**49),
        lambda value: value["shards"][0].update(chunks=value["shards"][1]["chunks"]),
        lambda value: value["shards"].append(value["shards"][0]),
        lambda value: value["shards"][0]["chunks"]["batches"].update(ends=[17]),
        lambda value: value["shards"][0]["chunks"]["batches"]["head"].update(bytes=24),
        lambda value: value["files"].update(codec=value["shards"][0]["index"]),
        lambda value: value["files"]["rejects"].update(rows=7),
    ],
)
def test_sizes_and_shapes_that_do_not_fit_are_refused(
    bank: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    reseal(bank, edit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptError):
        everything(bank)
    assert not verify(bank).ok
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10 or os.uname().sysname == "Darwin"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '"x"',
        "{}",
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"format":"m3build-bank","format":"m3build-bank"}',
        '{"format":"m3build-bank","version":NaN}',
        '{"format":"m3build-bank","version":1e400}',
        '{"format":"m3build-bank","version":' + "9" * 10_000 + "}",
        '{"format":"m3build-bank","version":"\\ud800"}',
        '{"format":"m3build-bank","version":"\ud800"}',
        '{"format":"m3build-bank","format_version":{}}',
        '{"format":"m3build-bank","features":[[]]}',
        '{"format":["m3build-bank"]}',
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_json_that_is_odd_is_a_typed_error(bank: Path, text: str) -> None:
    seal_text(bank, text)
    with pytest.raises(M3Error) as caught:
        read_manifest(bank)
    assert len(str(caught.value)) < 500
    assert not verify(bank).ok


@pytest.mark.parametrize("place", ["versions/00000001.json", "data", "versions"])
def test_a_link_out_of_the_bank_is_not_followed(bank: Path, place: str) -> None:
    target = bank.parent / "outside"
    (bank / place).rename(target)
    (bank / place).symlink_to(target)
    with pytest.raises(M3Error):
        open_bank(bank)
    with pytest.raises((M3Error, AssertionError)):
        assert verify(bank).ok


def test_a_writer_does_not_follow_links_out_of_the_bank(bank: Path) -> None:
    outside = bank.parent / "outside"
    outside.mkdir()
    (outside / ".tmp-keep").touch()
    for name in ("data", "versions", "build"):
        moved = bank.parent / f"moved-{name}"
        (bank / name).rename(moved)
        (bank / name).symlink_to(outside)
        with pytest.raises(ResourceError), BankWriter(bank):
            pass
        (bank / name).unlink()
        moved.rename(bank / name)
    (bank / "writer.lock").unlink()
    (bank / "writer.lock").symlink_to(outside / "lock")
    with pytest.raises(ResourceError), BankWriter(bank):
        pass
    assert sorted(os.listdir(outside)) == [".tmp-keep"]


def test_a_whole_bank_may_be_reached_through_a_link(bank: Path) -> None:
    (bank.parent / "link").symlink_to(bank)
    everything(bank.parent / "link")
    assert verify(bank.parent / "link").ok


@pytest.mark.parametrize("place", ["versions/00000001.json", "data"])
def test_a_fifo_does_not_hang_a_reader(bank: Path, place: str) -> None:
    if place == "data":
        name = read_manifest(bank).shards[0].index.name
        place = f"data/{name}"
    (bank / place).unlink()
    os.mkfifo(bank / place)
    with pytest.raises(CorruptError):
        open_bank(bank)
    assert not verify(bank).ok


def test_a_manifest_that_is_a_directory_is_a_typed_error(bank: Path) -> None:
    (bank / "versions/00000001.json").unlink()
    (bank / "versions/00000001.json").mkdir()
    with pytest.raises(CorruptError, match="not a regular file"):
        read_manifest(bank)


def test_a_manifest_of_absurd_size_is_not_read(bank: Path) -> None:
    path = bank / "versions/00000001.json"
    path.chmod(0o644)
    os.truncate(path, 1 << 40)
    with pytest.raises(CorruptError, match="more than"):
        read_manifest(bank)
