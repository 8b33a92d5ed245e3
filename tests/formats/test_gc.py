"""Old versions go, kept ones stay whole, whatever happens in between."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_bank import bank_files, chunk_rows, contents, write_shard

from m3build_formats import gc as gc_module
from m3build_formats.bank import list_versions, manifest_name, open_bank, read_manifest
from m3build_formats.canonical_json import canonical_json
from m3build_formats.commit import BankWriter
from m3build_formats.errors import (
    BusyError,
    CorruptError,
    NewerFormatError,
    ResourceError,
    UsageError,
)
from m3build_formats.gc import collect, parse_duration
from m3build_formats.manifest import Manifest
from m3build_formats.verify import verify

HOUR = 3600.0


def commit(path: Path, shards: Sequence[int], **changes: object) -> Manifest:
    """Commits a version that consists of the given shards; shard n has n + 3 rows of its own."""
    with BankWriter(path) as writer:
        base = writer.current()
        entries = [write_shard(writer, chunk_rows(number + 3, number), number) for number in shards]
        return writer.commit(replace(contents(entries, bank_files(writer)), **changes), base)  # type: ignore[arg-type]


def make_bank(path: Path, *versions: Sequence[int], age: float = 100 * HOUR) -> Path:
    for shards in versions:
        commit(path, shards)
    set_age(path, age)
    return path


def set_age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        os.utime(file, (moment, moment), follow_symlinks=False)


def manifest_path(bank: Path, version: int) -> Path:
    return bank / "versions" / manifest_name(version)


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)


def tree(bank: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below the bank but the lock: mode, time, bytes."""
    return {
        str(file.relative_to(bank)): (file.lstat().st_mode, file.lstat().st_mtime_ns, file.read_bytes())
        for file in bank.rglob("*")
        if file.is_file() and file.name != "writer.lock"
    }


def reachable(bank: Path) -> set[str]:
    return {name for number in list_versions(bank) for name in read_manifest(bank, number).all_files()}


def data_names(bank: Path) -> set[str]:
    return set(os.listdir(bank / "data"))


def bytes_of(bank: Path) -> int:
    return sum(file.stat().st_size for place in ("data", "versions") for file in (bank / place).iterdir())


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three old versions: each shares a shard with the one before it."""
    return make_bank(tmp_path / "bank", [0, 1], [1, 2], [2, 3])


def test_the_newest_versions_stay_and_what_only_the_others_needed_goes(three: Path) -> None:
    before, size = data_names(three), bytes_of(three)
    only_first = set(read_manifest(three, 1).all_files()) - set(read_manifest(three, 2).all_files())
    report = collect(three, keep=2)
    assert (report.kept, report.removed, report.unreadable) == ((2, 3), (1,), ())
    assert before - data_names(three) == only_first
    assert report.files == len(only_first) == 5
    assert report.bytes_freed == size - bytes_of(three)
    assert list_versions(three) == [2, 3]
    found = verify(three)
    assert not found.problems
    assert not found.unreachable


def test_ten_versions_stay_unless_told_otherwise(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank", *([number] for number in range(12)))
    assert collect(bank).kept == tuple(range(3, 13))


def test_the_current_version_always_stays(three: Path) -> None:
    current = read_manifest(three)
    with pytest.raises(UsageError, match="at least 1"):
        collect(three, keep=0)
    assert collect(three, keep=1, grace=0).kept == (3,)
    assert read_manifest(three) == current
    assert data_names(three) == set(current.all_files())


def test_a_second_collection_finds_nothing_to_do(three: Path) -> None:
    collect(three, keep=1)
    after = tree(three)
    again = collect(three, keep=1)
    assert (again.removed, again.files, again.bytes_freed) == ((), 0, 0)
    assert tree(three) == after
    assert not (three / "build").exists()


def test_unreachable_files_go_once_they_are_older_than_the_grace_period(three: Path) -> None:
    with BankWriter(three) as writer:
        old, young = (write_shard(writer, chunk_rows(20, number), number).chunks.name for number in (8, 9))
    set_age(three / "data", 100 * HOUR)
    set_age(three / "data" / young, HOUR / 4)
    report = collect(three, grace="30m")
    assert (report.removed, report.grace_files) == ((), 1)
    assert old not in data_names(three)
    assert young in data_names(three)
    assert collect(three, grace="10m").files == 1
    assert young not in data_names(three)


def test_a_version_that_was_current_within_the_grace_period_stays_with_its_files(three: Path) -> None:
    set_age(manifest_path(three, 3), HOUR / 2)
    report = collect(three, keep=1)
    assert (report.kept, report.removed, report.grace_versions) == ((2, 3), (1,), (2,))
    assert not verify(three).problems
    set_age(manifest_path(three, 3), 2 * HOUR)
    assert collect(three, keep=1).removed == (2,)


def test_a_young_manifest_stays_though_its_successor_looks_old(three: Path) -> None:
    set_age(manifest_path(three, 1), 0)
    assert collect(three, keep=1).kept == (1, 3)
    assert not verify(three).problems


def test_what_m3build_did_not_make_is_listed_and_left_alone(three: Path, tmp_path: Path) -> None:
    name = f"{'a' * 64}.chunks.arrow"
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    (three / "data" / "notes.txt").write_text("mine")
    (three / "data" / name.replace("arrow", "parquet")).write_text("mine")
    (three / "data" / f"{'A' * 64}.index").write_text("mine")
    (three / "data" / f"{'b' * 64}.index").mkdir()
    os.mkfifo(three / "data" / f"{'c' * 64}.index")
    (three / "data" / name).symlink_to(outside)
    (three / "data" / ".tmp-directory").mkdir()
    (three / "versions" / "00000001.json.bak").write_text("mine")
    (three / "versions" / "00000000.json").write_text("mine")
    (three / "README").write_text("mine")
    set_age(three, 1000 * HOUR)
    expected = sorted(
        [
            "README",
            "data/.tmp-directory",
            "data/notes.txt",
            f"data/{name}",
            f"data/{name.replace('arrow', 'parquet')}",
            f"data/{'A' * 64}.index",
            f"data/{'b' * 64}.index",
            f"data/{'c' * 64}.index",
            "versions/00000000.json",
            "versions/00000001.json.bak",
        ]
    )
    for report in (collect(three, keep=1), collect(three, purge=True)):
        assert list(report.foreign) == expected
        assert all(os.path.lexists(three / item) for item in expected)
    assert outside.exists()


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_manifest_that_is_no_file_is_not_removed(kind: str, three: Path, tmp_path: Path) -> None:
    place = manifest_path(three, 1)
    place.rename(tmp_path / "elsewhere")
    if kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
    report = collect(three, keep=1)
    assert (report.kept, report.removed) == ((3,), (2,))
    assert report.foreign == ("versions/00000001.json",)
    assert (tmp_path / "elsewhere").exists()
    assert os.path.lexists(place)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: data.replace(b'"counts"', b'"c0unts"'), lambda _: b""],
    ids=["cut", "flipped", "empty"],
)
@pytest.mark.parametrize(
    ("version", "options"),
    [(2, {"keep": 2}), (3, {"keep": 2}), (3, {"keep": 1}), (3, {"purge": True})],
    ids=str,
)
def test_a_damaged_manifest_that_would_stay_stops_everything(
    damage: Callable[[bytes], bytes], version: int, options: dict[str, Any], three: Path
) -> None:
    spoil(manifest_path(three, version), damage)
    set_age(three, 100 * HOUR)
    before = tree(three)
    for dry_run in (True, False):
        with pytest.raises(CorruptError, match=f"{manifest_name(version)}.*nothing was removed"):
            collect(three, dry_run=dry_run, **options)
        assert tree(three) == before


def test_a_kept_version_of_a_newer_format_stops_everything(three: Path) -> None:
    import hashlib

    value = {**read_manifest(three).to_json(), "format_version": 2}
    body = canonical_json(value).encode()
    tail = f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()
    spoil(manifest_path(three, 3), lambda _: body[:-1] + tail)
    before = tree(three)
    with pytest.raises(NewerFormatError, match="upgrade"):
        collect(three, keep=1, grace=0)
    assert tree(three) == before


@pytest.mark.parametrize(
    ("options", "kept", "gone"), [({"keep": 2}, (2, 3), (1,)), ({"purge": True}, (3,), (1, 2))], ids=str
)
def test_a_damaged_manifest_that_need_not_stay_is_named_and_removed(
    options: dict[str, Any], kept: tuple[int, ...], gone: tuple[int, ...], three: Path
) -> None:
    spoil(manifest_path(three, 1), lambda data: data[:-9])
    report = collect(three, **options)
    assert (report.kept, report.removed, report.unreadable) == (kept, gone, (1,))
    assert data_names(three) == reachable(three)
    assert tuple(list_versions(three)) == kept


class Killed(BaseException):
    """Stands for a process that ends here."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets everything that changes the disk happen ``step`` times; returns what happened."""
    events: list[str] = []
    unlink, sync = os.unlink, gc_module.sync_directory

    def note(event: str) -> None:
        if len(events) == step:
            raise Killed
        events.append(event)

    def noted_unlink(name: str, *, dir_fd: int | None = None) -> None:
        note(name)
        unlink(name, dir_fd=dir_fd)

    def noted_sync(descriptor: int, name: str) -> None:
        note(f"sync {os.path.basename(name)}")
        sync(descriptor, name)

    monkeypatch.setattr(gc_module.os, "unlink", noted_unlink)
    monkeypatch.setattr(gc_module, "sync_directory", noted_sync)
    return events


@pytest.mark.parametrize("purge", [False, True])
def test_a_crash_anywhere_leaves_every_remaining_manifest_with_its_files(
    purge: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(bank: Path) -> None:
        collect(bank, keep=None if purge else 2, purge=purge)

    whole = make_bank(tmp_path / "whole", [0, 1], [1, 2], [2, 3], [3, 4])
    with monkeypatch.context() as patch:
        steps = kill_at(10**6, patch)
        run(whole)
    assert len(steps) > 12
    for step in range(len(steps)):
        bank = make_bank(tmp_path / f"at-{step}", [0, 1], [1, 2], [2, 3], [3, 4])
        current = read_manifest(bank)
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            with pytest.raises(Killed):
                run(bank)
        assert not verify(bank, "quick").problems
        assert read_manifest(bank) == current
        run(bank)
        assert data_names(bank) == data_names(whole)
        assert list_versions(bank) == list_versions(whole)
        assert not verify(bank).problems


def test_manifests_are_gone_for_good_before_the_first_data_file_goes(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = kill_at(10**6, monkeypatch)
    collect(three, keep=1)
    assert events[:3] == [manifest_name(1), manifest_name(2), "sync versions"]
    assert all(len(name.split(".")[0]) == 64 for name in events[3:-2])
    assert events[-2:] == ["sync data", "sync bank"]


def test_no_data_file_goes_if_the_removal_of_manifests_may_be_lost(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int, name: str) -> None:
        raise ResourceError(f"cannot force {name} to disk")

    before = data_names(three)
    monkeypatch.setattr(gc_module, "sync_directory", fail)
    with pytest.raises(ResourceError, match="versions"):
        collect(three, keep=1)
    assert data_names(three) == before


def test_a_file_that_cannot_be_removed_is_named(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *, dir_fd: int | None = None) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(gc_module.os, "unlink", fail)
    with pytest.raises(ResourceError, match=r"versions/00000001.json: Permission denied"):
        collect(three, keep=1)


def test_an_open_reader_keeps_its_version(three: Path) -> None:
    with open_bank(three, version=1) as reader:
        expected = list(open_bank(three, version=1).shards[1].chunks())
        collect(three, purge=True)
        with pytest.raises(UsageError, match="has no version 1"):
            read_manifest(three, 1)
        assert list(reader.shards[1].chunks()) == expected
        assert reader.shards[0].memories([0, 2]).shape == (2, reader.manifest.row_bytes)


def test_a_dry_run_tells_the_same_and_changes_nothing(three: Path) -> None:
    options: dict[str, Any]
    for options in ({"keep": 2}, {"purge": True}):
        with BankWriter(three):
            before = tree(three)
            planned = collect(three, dry_run=True, **options)
            assert tree(three) == before
        assert planned.dry_run
        assert replace(planned, dry_run=False) == collect(three, **options)


def test_another_writer_makes_it_busy(three: Path) -> None:
    with BankWriter(three), pytest.raises(BusyError):
        collect(three)
    collect(three, wait_seconds=5)


def test_what_is_no_bank_or_holds_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bank"):
        collect(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with BankWriter(tmp_path / "stopped") as writer:
        write_shard(writer, chunk_rows(5))
        (writer.build_directory / "piece").write_text("work")
    with pytest.raises(UsageError, match="no version to keep"):
        collect(tmp_path / "stopped", grace=0)
    assert data_names(tmp_path / "stopped")
    assert collect(tmp_path / "stopped", purge=True).kept == ()
    assert data_names(tmp_path / "stopped") == set()


def test_work_that_was_stopped_is_spared(three: Path) -> None:
    (three / "build").mkdir(exist_ok=True)
    (three / "build" / "piece").write_text("work")
    set_age(three, 1000 * HOUR)
    collect(three, keep=1)
    assert (three / "build" / "piece").read_text() == "work"


def test_after_a_purge_no_file_holds_what_left_the_bank(three: Path) -> None:
    secret = b"of shard 0,"
    (three / "build" / "pieces").mkdir(parents=True)
    (three / "build" / "pieces" / "one").write_bytes(secret)
    for place in ("data", "versions"):
        (three / place / ".tmp-1-left").write_bytes(secret)
    with BankWriter(three) as writer:
        write_shard(writer, chunk_rows(30, 0), 0)  # made a moment ago, and never published
        for place in ("data", "versions"):
            (three / place / ".tmp-1-left").write_bytes(secret)
    assert sum(secret in data for _, _, data in tree(three).values()) == 5
    current, size = read_manifest(three), bytes_of(three)
    report = collect(three, purge=True)
    assert not any(secret in data for _, _, data in tree(three).values())
    assert not (three / "build").exists()
    assert (report.kept, report.removed, report.build_files) == ((3,), (1, 2), 1)
    assert report.bytes_freed == size - bytes_of(three) - 2 * len(secret) + len(secret)
    assert data_names(three) == set(current.all_files())
    assert report.shared_files == 5 + 4  # shard 2, and the files that a version has once
    assert any("backups" in line for line in report.beyond_reach)
    assert not verify(three).problems


def test_a_purge_refuses_what_contradicts_it(three: Path) -> None:
    before = tree(three)
    with pytest.raises(UsageError, match="current version alone"):
        collect(three, purge=True, keep=2)
    with pytest.raises(UsageError, match="no grace period"):
        collect(three, purge=True, grace="1h")
    assert tree(three) == before
    assert collect(three, purge=True, keep=1, grace="0s").kept == (3,)


def test_a_purge_names_removed_files_that_have_another_name_on_the_disk(three: Path, tmp_path: Path) -> None:
    name = read_manifest(three, 1).shards[0].chunks.name
    os.link(three / "data" / name, tmp_path / "snapshot")
    assert collect(three, purge=True).linked == (name,)
    assert (tmp_path / "snapshot").exists()


def test_a_temporary_file_that_stays_fails_a_purge(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m3build_formats import commit as commit_module

    monkeypatch.setattr(commit_module, "remove_temporaries", lambda _: None)
    (three / "data" / ".tmp-1-left").write_text("text")
    with pytest.raises(ResourceError, match=r"data/\.tmp-1-left"):
        collect(three, purge=True)


def test_a_codec_is_judged_by_what_its_version_held(tmp_path: Path) -> None:
    def answers(bank: Path) -> tuple[str, str]:
        report = collect(bank, purge=True)
        assert report.codec is not None
        assert report.embedder is not None
        return report.codec.left, report.embedder.left

    assert answers(make_bank(tmp_path / "fresh", [0, 1])) == ("no", "no")
    assert answers(make_bank(tmp_path / "grown", [0, 1], [0, 1, 2])) == ("no", "no")
    shrunk = make_bank(tmp_path / "shrunk", [0, 1], [0, 2])
    assert answers(shrunk) == ("may", "may")
    assert answers(shrunk) == ("unknown", "unknown"), "the version that could tell is gone by now"

    rolled = make_bank(tmp_path / "rolled-back", [0, 1])
    commit(rolled, [1], files=replace(read_manifest(rolled).files, codec=None))
    commit(rolled, [0, 1], operation="rollback")
    assert answers(rolled) == ("no", "no")

    no_codec = make_bank(tmp_path / "no-codec", [0])
    commit(no_codec, [1], files=replace(read_manifest(no_codec).files, codec=None))
    assert answers(no_codec) == ("no", "may")

    elsewhere = tmp_path / "elsewhere"
    codec = {**read_manifest(no_codec).codec, "trained_on": {"references": 9, "corpus_references": 10**6}}
    commit(elsewhere, [0], codec=codec)
    assert answers(elsewhere) == ("unknown", "no")

    merged = tmp_path / "merged"
    commit(merged, [0], operation="merge")
    assert answers(merged) == ("unknown", "no")

    retrained = make_bank(tmp_path / "retrained", [0, 1])
    other = read_manifest(elsewhere).files
    assert other.codec is not None
    commit(retrained, [1], files=replace(other, codec=replace(other.codec, **_other_codec(retrained))))
    assert answers(retrained) == ("no", "may")


def _other_codec(bank: Path) -> dict[str, object]:
    import numpy as np

    from m3build_formats.arrays_file import write_arrays

    with BankWriter(bank) as writer:
        entry = write_arrays(writer, "codec", {"means": np.ones(3, np.float32)})
    return {name: getattr(entry, name) for name in ("name", "sha256", "bytes", "rows", "batches")}


@pytest.mark.parametrize("seed", range(6))
def test_random_banks_keep_exactly_what_they_must(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    bank = make_bank(
        tmp_path / "bank", *(sorted(draw.sample(range(6), draw.randint(1, 4))) for _ in range(7))
    )
    ages = sorted((draw.choice([0.2, 0.5, 2, 5]) * HOUR for _ in range(7)), reverse=True)
    for number, age in enumerate(ages, start=1):
        set_age(manifest_path(bank, number), age)
    keep = draw.randint(1, 4)
    expected = {
        number
        for number in range(1, 8)
        if number > 7 - keep or ages[number - 1] < HOUR or ages[number] < HOUR
    }
    needed = {name for number in expected for name in read_manifest(bank, number).all_files()}
    young = {name for name in data_names(bank) if draw.random() < 0.2}
    for name in young:
        set_age(bank / "data" / name, 60)
    report = collect(bank, keep=keep, grace="1h")
    assert set(report.kept) == expected == set(list_versions(bank))
    assert data_names(bank) == needed | young
    assert report.grace_files == len(young - needed)
    assert not verify(bank).problems


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604800), ("1.5h", 5400), (" 0s", 0), (90, 90.0)],
)
def test_a_grace_period_is_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1w", "1h30m", "nan", "1e3s", -1, float("nan"), "٣s"])
def test_what_is_no_time_is_refused(text: str | float) -> None:
    with pytest.raises(UsageError, match="30s, 15m, 1h or 7d"):
        parse_duration(text)


def test_a_collection_needs_the_standard_library_only(three: Path) -> None:
    code = (
        "import sys; import m3build_formats.gc as gc; gc.collect(sys.argv[1], purge=True);"
        "bad = {'pyarrow', 'numpy', 'torch', 'transformers', 'faiss', 'zstandard'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) if bad else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(three)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list_versions(three) == [3]
