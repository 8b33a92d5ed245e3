from __future__ import annotations

import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from corpus_bank import Doc, commit_corpus, put_newer_manifest
from sample_bank import add_version, build_bank

from m3build_formats.bank import Versions, list_versions, manifest_name, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.entries import Batches
from m3build_formats.errors import CorruptError, NewerFormatError, UsageError
from m3build_formats.history import Change, UnreadableVersion, Version, contents_digest, versions
from m3build_formats.manifest import BaseVersion, Manifest
from m3build_formats.rollback import rollback


def manifest_path(bank: Path, version: int) -> Path:
    return bank / "versions" / manifest_name(version)


def put_manifest(bank: Path, manifest: Manifest) -> None:
    """Writes a manifest as it is, without looking at its base."""
    manifest_path(bank, manifest.version).write_bytes(manifest.to_bytes())


def damage(bank: Path, version: int) -> None:
    path = manifest_path(bank, version)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def sound(records: tuple[Version | UnreadableVersion, ...]) -> list[Version]:
    found = [item for item in records if isinstance(item, Version)]
    assert len(found) == len(records)
    return found


def test_versions_come_newest_first_with_what_they_changed(tmp_path: Path) -> None:
    first = commit_corpus(tmp_path, [[Doc("a", ("one", "two")), Doc("b", ("three",))]])
    second = commit_corpus(tmp_path, [[Doc("a", ("one", "two"))]], "edit")
    newest, oldest = sound(versions(tmp_path))
    sizes = [
        sum(os.path.getsize(tmp_path / "data" / name) for name in item.all_files())
        for item in (first, second)
    ]
    assert oldest == Version(1, first.sha256, first.created, "compile", 2, 3, sizes[0], None, None, None)
    assert newest.change == Change(-1, -1, sizes[1] - sizes[0])
    assert (newest.version, newest.operation, newest.base) == (
        2,
        "edit",
        BaseVersion(version=1, sha256=first.sha256),
    )
    assert newest.to_json()["change"] == {"documents": -1, "chunks": -1, "bytes": sizes[1] - sizes[0]}
    assert newest.to_json()["base"] == {"version": 1, "sha256": first.sha256}


def test_a_damaged_version_is_named_and_the_others_are_shown(bank: Path) -> None:
    for operation in ("second", "third"):
        add_version(bank, operation)
    damage(bank, 2)
    third, second, first = versions(bank)
    assert isinstance(second, UnreadableVersion)
    assert isinstance(second.error, CorruptError)
    assert "versions/00000002.json" in str(second.error)
    assert second.to_json() == {"version": 2, "problem": str(second.error)}
    assert isinstance(first, Version)
    assert isinstance(third, Version)
    assert third.base is not None
    assert third.change is None


def test_a_version_of_a_newer_format_is_named_and_the_others_are_shown(bank: Path) -> None:
    put_newer_manifest(bank, 2)
    second, first = versions(bank)
    assert isinstance(second, UnreadableVersion)
    assert isinstance(second.error, NewerFormatError)
    assert isinstance(first, Version)


def test_a_base_that_was_collected_is_still_named(bank: Path) -> None:
    for _ in range(3):
        add_version(bank)
    manifest_path(bank, 3).unlink()
    fourth, second, first = sound(versions(bank))
    assert [item.version for item in (fourth, second, first)] == [4, 2, 1]
    assert fourth.base is not None
    assert fourth.base.version == 3
    assert fourth.change is None
    assert second.change == Change(0, 0, 0)


def test_a_base_of_the_same_number_from_elsewhere_is_not_compared_with(bank: Path) -> None:
    second = add_version(bank)
    put_manifest(bank, replace(second, version=3, base=BaseVersion(version=2, sha256="0" * 64)))
    assert sound(versions(bank))[0].change is None


def test_a_limit_shows_the_newest_and_reads_no_more_than_their_bases(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(6):
        add_version(bank)
    read: list[int] = []
    original = Versions.read

    def counting(self: Versions, version: int) -> Manifest | None:
        read.append(version)
        return original(self, version)

    monkeypatch.setattr(Versions, "read", counting)
    assert [item.version for item in versions(bank, 2)] == [7, 6]
    assert read == [7, 6, 5]
    read.clear()
    assert [item.version for item in versions(bank, 100)] == [7, 6, 5, 4, 3, 2, 1]
    assert sorted(read) == [1, 2, 3, 4, 5, 6, 7]


def test_a_rollback_says_what_it_restored_even_beyond_the_limit(tmp_path: Path) -> None:
    for text in ("one", "two", "three", "four"):
        commit_corpus(tmp_path, [[Doc("a", (text,))]])
    rollback(tmp_path, 2)
    assert [item.restores for item in sound(versions(tmp_path, 1))] == [2]
    rollback(tmp_path, 1)
    rollback(tmp_path, 2)
    assert [item.restores for item in sound(versions(tmp_path))] == [5, 1, 2, None, None, None, None]


def test_a_rollback_to_a_version_that_was_collected_restores_nothing_that_is_there(tmp_path: Path) -> None:
    for text in ("one", "two"):
        commit_corpus(tmp_path, [[Doc("a", (text,))]])
    rollback(tmp_path, 1)
    manifest_path(tmp_path, 1).unlink()
    assert sound(versions(tmp_path))[0].restores is None


def test_the_digest_of_contents_leaves_out_what_made_them_and_nothing_else(bank: Path) -> None:
    first = read_manifest(bank)
    second = add_version(bank, "other")
    assert contents_digest(first) == contents_digest(second) == contents_digest(first.contents)
    changed = [
        replace(first.contents, code_key="fedcba9876543210"),
        replace(first.contents, shards=first.shards[::-1]),
        replace(first.contents, shards=first.shards[:1]),
        replace(first.contents, files=replace(first.files, eval=None)),
        replace(first.contents, libraries={"numpy": "3"}),
        replace(first.contents, counts={**first.counts, "tokens": 1}),
    ]
    digests = {contents_digest(item) for item in (first, *changed)}
    assert len(digests) == len(changed) + 1


def test_a_version_that_is_removed_while_they_are_read_is_left_out(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(bank)
    original = Versions.read

    def collected(self: Versions, version: int) -> Manifest | None:
        manifest_path(bank, 1).unlink(missing_ok=True)
        return original(self, version)

    monkeypatch.setattr(Versions, "read", collected)
    (only,) = sound(versions(bank))
    assert only.version == 2
    assert only.change is None


def test_many_large_manifests_take_the_memory_of_one(bank: Path) -> None:
    # Logs read manifests alone, so the files that these name need not be there.
    first = read_manifest(bank)
    rows = 512 * 8000
    memories = first.shards[0].chunks
    long = Batches(512, 100, "0" * 32, tuple(range(101, 8101)), tuple(f"{n:032x}" for n in range(8000)))
    entry = replace(memories, rows=rows, bytes=rows * 100, batches=long)
    tables = {"chunks": entry, "memories": None}
    shard = replace(first.shards[0], rows=rows, **tables)
    embeddings = replace(first.shards[0].embeddings, rows=rows, bytes=rows * 100, batches=long)
    big = replace(
        first,
        shards=(replace(shard, embeddings=embeddings),),
        counts={**first.counts, "chunks": rows},
        index={**first.index, "vectors": rows},
    )
    for version in range(1, 11):
        put_manifest_anew(bank, replace(big, version=version))
    damage(bank, 5)
    damage(bank, 6)
    assert os.path.getsize(manifest_path(bank, 10)) > 500_000

    def peak_of(call: object) -> int:
        tracemalloc.start()
        try:
            call()  # type: ignore[operator]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    one = peak_of(lambda: read_manifest(bank, 10))
    assert peak_of(lambda: versions(bank)) < 1.5 * one


def put_manifest_anew(bank: Path, manifest: Manifest) -> None:
    manifest_path(bank, manifest.version).unlink(missing_ok=True)
    put_manifest(bank, manifest)


def test_what_is_no_bank_or_has_no_version_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bank there"):
        versions(tmp_path)
    (tmp_path / "versions").mkdir()
    with pytest.raises(UsageError, match="no version yet"):
        versions(tmp_path)
    build_bank(tmp_path / "bank")
    for limit in (0, -1):
        with pytest.raises(UsageError, match="at least 1"):
            versions(tmp_path / "bank", limit)


def test_a_bank_without_data_still_has_a_log(bank: Path) -> None:
    shutil.rmtree(bank / "data")
    assert [item.version for item in versions(bank)] == [1]


def test_a_history_of_hundreds_of_versions_is_whole(bank: Path) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        for number in range(2, 301):
            put_manifest(bank, replace(base, version=number, base=None))
    assert [item.version for item in versions(bank)] == list_versions(bank)[::-1] == list(range(300, 0, -1))
