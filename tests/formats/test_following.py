"""A reader that follows the current version while others write and collect sees whole versions only."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from corpus_bank import Doc, chunk_id, commit_corpus
from sample_bank import add_version

from m3build_formats.bank import Versions, manifest_name, open_bank, read_manifest
from m3build_formats.errors import CorruptError, MismatchError, ResourceError, UsageError
from m3build_formats.gc import collect
from m3build_formats.history import Version, versions
from m3build_formats.manifest import Manifest
from m3build_formats.open_bank import BankFiles

COMMITS = 25


def commit_numbered(bank: Path, number: int) -> Manifest:
    """A version of which every file but the codec's and the like says the number."""
    shards = [[Doc(f"{part}-{number}", (f"text {number} of shard {part}",))] for part in range(3)]
    return commit_corpus(bank, shards, f"number {number}")


def number_of(opened: BankFiles) -> int:
    """The number that manifest, documents and chunks of an open version agree on."""
    number = int(opened.manifest.operation.removeprefix("number "))
    for part, shard in enumerate(opened.shards):
        assert shard.chunk(0).text == f"text {number} of shard {part}"
        assert shard.document(0).id == f"{part}-{number}"
        assert shard.chunk_id(0) == chunk_id(f"text {number} of shard {part}")
        assert shard.memories([0]).shape[0] == 1
        assert bytes(shard.index_bytes()[:4]) == b"IxFI"
    return number


def follow(bank: Path, stop: threading.Event, pinned: bool) -> list[int]:
    """Opens the bank again and again until it is told to stop, and once more after that; the numbers seen."""
    seen: list[int] = []
    last = False
    while not last:
        last = stop.is_set()
        if not pinned:
            with open_bank(bank) as opened:
                seen.append(number_of(opened))
            continue
        wanted = read_manifest(bank)
        try:
            if len(seen) % 2:
                opened = open_bank(bank, expect=f"sha256:{wanted.sha256}")
            else:
                opened = open_bank(bank, wanted.version)
        except (UsageError, MismatchError):
            continue  # collected, and said so
        with opened:
            assert opened.manifest == wanted
            seen.append(number_of(opened))
    return seen


def test_readers_see_whole_versions_while_a_writer_commits_and_a_collector_deletes(tmp_path: Path) -> None:
    commit_numbered(tmp_path, 0)
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(follow, tmp_path, stop, pinned) for pinned in (False, False, True)]
        try:
            for number in range(1, COMMITS + 1):
                commit_numbered(tmp_path, number)
                assert collect(tmp_path, keep=1, grace=0).files > 0
        finally:
            stop.set()
        for reader in readers:
            seen = reader.result()
            assert seen == sorted(seen)
            assert seen[-1] == COMMITS
    assert len(list((tmp_path / "versions").iterdir())) == 1


def remove_before_reading(monkeypatch: pytest.MonkeyPatch, bank: Path, version: int) -> list[int]:
    """Removes a version's manifest at the moment when it is about to be read for the first time."""
    read: list[int] = []
    original = Versions.read

    def collected(self: Versions, wanted: int) -> Manifest | None:
        read.append(wanted)
        if wanted == version:
            (bank / "versions" / manifest_name(version)).unlink(missing_ok=True)
            if version == 1:
                add_version_unlocked(bank)
        return original(self, wanted)

    def add_version_unlocked(bank: Path) -> None:
        text = (bank / "kept.json").read_bytes()
        (bank / "versions" / manifest_name(2)).write_bytes(text)

    monkeypatch.setattr(Versions, "read", collected)
    return read


def test_a_current_version_collected_before_its_manifest_is_read_gives_the_next(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(bank)
    (bank / "versions" / manifest_name(2)).rename(bank / "kept.json")
    read = remove_before_reading(monkeypatch, bank, 1)
    assert read_manifest(bank).version == 2
    assert read == [1, 2]


def test_a_log_of_versions_that_are_all_collected_meanwhile_shows_those_there_are_then(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(bank)
    (bank / "versions" / manifest_name(2)).rename(bank / "kept.json")
    read = remove_before_reading(monkeypatch, bank, 1)
    (only,) = versions(bank)
    assert isinstance(only, Version)
    assert (only.version, only.change) == (2, None)
    assert read == [1, 2]


def test_a_pinned_version_collected_before_it_is_read_is_a_usage_error(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = add_version(bank, "second"), add_version(bank, "third")
    remove_before_reading(monkeypatch, bank, 2)
    with pytest.raises(UsageError, match="has no version 2; it has 1, 3"):
        read_manifest(bank, 2)
    with pytest.raises(MismatchError, match="none of its 2 versions"):
        read_manifest(bank, expect=f"sha256:{second.sha256}")
    assert read_manifest(bank, expect=f"sha256:{third.sha256}") == third


@pytest.mark.parametrize("by_digest", [False, True])
def test_a_pinned_version_collected_before_its_files_are_opened_is_not_called_corrupt(
    bank: Path, monkeypatch: pytest.MonkeyPatch, by_digest: bool
) -> None:
    from m3build_formats import open_bank as module

    first = read_manifest(bank)
    real = module.BankFiles

    def collected(path: Path, manifest: Manifest) -> BankFiles:
        commit_numbered(bank, 7)
        collect(bank, keep=1, grace=0)
        return real(path, manifest)

    monkeypatch.setattr(module, "BankFiles", collected)
    if by_digest:
        with pytest.raises(MismatchError, match="none of its 1 versions"):
            open_bank(bank, expect=f"sha256:{first.sha256}")
    else:
        with pytest.raises(UsageError, match="has no version 1; it has 2"):
            open_bank(bank, 1)


def test_a_pinned_version_with_a_missing_file_is_corrupt(bank: Path) -> None:
    first = read_manifest(bank)
    add_version(bank)
    (bank / "data" / first.shards[0].chunks.name).unlink()
    for pin in ({"version": 1}, {"expect": f"sha256:{first.sha256}"}):
        with pytest.raises(CorruptError, match=first.shards[0].chunks.name):
            open_bank(bank, **pin)  # type: ignore[arg-type]


def test_a_manifest_that_is_listed_and_never_given_is_an_error_and_no_hang(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Versions, "read", lambda self, version: None)
    with pytest.raises(ResourceError, match="lists version 1"):
        read_manifest(bank)
    with pytest.raises(ResourceError, match="lists version 1"):
        versions(bank)


def test_a_message_that_lists_many_versions_says_that_there_are_more(bank: Path) -> None:
    for _ in range(11):
        add_version(bank)
    with pytest.raises(UsageError, match=r"has no version 99; it has …, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12$"):
        read_manifest(bank, 99)
