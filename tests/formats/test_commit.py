from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sample_bank import add_version, build_bank, chunk_rows, contents, temporary_files, write_shard

from m3build_formats import atomic
from m3build_formats.bank import list_versions, open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import DataDirectory, Sink, TableShape
from m3build_formats.errors import BusyError, CorruptError, ResourceError, UsageError
from m3build_formats.verify import verify


def test_a_commit_makes_the_next_version_on_its_base(bank: Path) -> None:
    first = read_manifest(bank)
    second = add_version(bank, "second")
    assert (second.version, second.operation) == (2, "second")
    assert second.base is not None
    assert (second.base.version, second.base.sha256) == (1, first.sha256)
    assert list_versions(bank) == [1, 2]
    assert read_manifest(bank) == second
    assert read_manifest(bank, 1) == first
    assert temporary_files(bank) == []


def test_equal_builds_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one, two = build_bank(tmp_path / "one"), build_bank(tmp_path / "two")
    assert one.created == "2023-11-14T22:13:20Z"
    assert one.sha256 == two.sha256
    for name in one.all_files():
        assert (tmp_path / "one/data" / name).read_bytes() == (tmp_path / "two/data" / name).read_bytes()


def test_a_bad_source_date_epoch_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        build_bank(tmp_path / "b")


def test_a_second_writer_is_busy_and_told_by_whom(bank: Path) -> None:
    with BankWriter(bank), pytest.raises(BusyError, match=f"process {os.getpid()} "), BankWriter(bank):
        pass
    add_version(bank)


def test_a_writer_that_waits_gets_its_turn(bank: Path) -> None:
    held = BankWriter(bank)
    held.__enter__()
    timer = threading.Timer(0.2, held.__exit__, (None, None, None))
    timer.start()
    with BankWriter(bank, wait_seconds=30) as writer:
        assert writer.current() is not None
    timer.join()


def test_the_lock_dies_with_its_process(bank: Path) -> None:
    code = (
        "import os, sys; from m3build_formats.commit import BankWriter\n"
        f"BankWriter({os.fspath(bank)!r}).__enter__()\n"
        "open(os.path.join(sys.argv[1], 'data', '.tmp-1-x'), 'w').close()\n"
        "os._exit(9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, os.fspath(bank)], env=environment, check=False)
    assert len(temporary_files(bank)) == 1
    add_version(bank)
    assert temporary_files(bank) == []


def test_a_stale_base_is_busy(bank: Path) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        writer.commit(replace(base.contents, operation="mine"), base)
        with pytest.raises(BusyError, match="version 2 is current"):
            writer.commit(replace(base.contents, operation="late"), base)
        with pytest.raises(BusyError, match="an empty bank"):
            writer.commit(base.contents, None)
    assert list_versions(bank) == [1, 2]


def test_a_base_of_the_same_number_from_elsewhere_is_busy(bank: Path, tmp_path: Path) -> None:
    other = build_bank(tmp_path / "other", rows=(3,))
    with BankWriter(bank) as writer, pytest.raises(BusyError, match="no longer what this build started from"):
        writer.commit(other.contents, other)


def test_a_manifest_that_appears_in_between_is_not_overwritten(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        monkeypatch.setattr(
            writer, "_check_base", lambda base: (bank / "versions/00000002.json").write_text("x")
        )
        with pytest.raises(BusyError, match="appeared"):
            writer.commit(base.contents, base)
    assert (bank / "versions/00000002.json").read_text() == "x"
    assert temporary_files(bank) == []


def test_eight_processes_lose_and_double_no_commit(bank: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.starmap(_commit_often, [(bank, worker, 4) for worker in range(8)])
    assert list_versions(bank) == list(range(1, 34))
    operations = [read_manifest(bank, version).operation for version in range(2, 34)]
    assert sorted(operations) == sorted(f"{worker}-{number}" for worker in range(8) for number in range(4))
    assert verify(bank).ok


def _commit_often(bank: Path, worker: int, commits: int) -> None:
    for number in range(commits):
        with BankWriter(bank, wait_seconds=60) as writer:
            base = writer.current()
            if base is not None:
                writer.commit(replace(base.contents, operation=f"{worker}-{number}"), base)


def test_contents_that_make_no_manifest_are_refused_before_anything_is_written(bank: Path) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        for wrong in (
            replace(base.contents, code_key="?"),
            replace(base.contents, counts={}),
            replace(base.contents, sources={"a": float("nan")}),
            replace(base.contents, row_codes_bytes=1),
        ):
            with pytest.raises(ValueError):
                writer.commit(wrong, base)
    assert list_versions(bank) == [1]
    assert temporary_files(bank) == []


def test_a_manifest_that_readers_would_refuse_is_not_made(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3build_formats.commit.MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(ResourceError, match="format 1 allows 1,000"):
        add_version(bank)
    assert list_versions(bank) == [1]
    monkeypatch.undo()
    assert add_version(bank).version == 2


def test_a_version_never_names_a_file_that_is_not_there(bank: Path) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        entry = base.shards[0].memories
        assert entry is not None
        os.truncate(bank / "data" / entry.name, 5)
        with pytest.raises(CorruptError, match=entry.name):
            writer.commit(base.contents, base)
        os.unlink(bank / "data" / entry.name)
        with pytest.raises(CorruptError, match=entry.name):
            writer.commit(base.contents, base)


def test_an_equal_file_is_written_once(tmp_path: Path) -> None:
    with DataDirectory(tmp_path) as data:
        first = data.add_file("eval", b"{}")
        before = (tmp_path / first.name).stat()
        assert data.add_file("eval", b"{}") == first
        after = (tmp_path / first.name).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [file.name for file in tmp_path.iterdir()] == [first.name]


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "link", "remove"])
def test_writing_a_damaged_file_again_repairs_it(bank: Path, damage: str) -> None:
    manifest = read_manifest(bank)
    name = manifest.shards[1].chunks.name
    path = bank / "data" / name
    good = path.read_bytes()
    path.unlink()
    if damage == "link":
        path.symlink_to("/etc/hostname")
    elif damage != "remove":
        path.write_bytes(
            {"flip": good[:50] + b"!" + good[51:], "truncate": good[:-1], "extend": good + b"x"}[damage]
        )
    assert not verify(bank).ok
    with BankWriter(bank) as writer:
        assert not writer.is_sound(manifest.shards[1].chunks)
        write_shard(writer, chunk_rows(7, 1), 1)
        assert writer.is_sound(manifest.shards[1].chunks)
    assert path.read_bytes() == good
    assert not path.is_symlink()
    assert verify(bank).ok
    assert temporary_files(bank) == []


def test_a_repair_does_not_disturb_an_open_reader(bank: Path) -> None:
    with open_bank(bank) as opened:
        before = opened.shards[1].memories(range(7)).copy()
        entry = opened.manifest.shards[1].memories
        assert entry is not None
        path = bank / "data" / entry.name
        path.unlink()
        path.write_bytes(b"damaged")
        with BankWriter(bank) as writer:
            write_shard(writer, chunk_rows(7, 1), 1)
        assert (opened.shards[1].memories(range(7)) == before).all()


def test_a_producer_that_fails_leaves_no_file(bank: Path) -> None:
    def failing(sink: Sink) -> TableShape | None:
        sink.write(b"x" * 3_000_000)
        raise KeyboardInterrupt

    before = sorted(file.name for file in (bank / "data").iterdir())
    with BankWriter(bank) as writer, pytest.raises(KeyboardInterrupt):
        writer.add_file("eval", failing)
    assert sorted(file.name for file in (bank / "data").iterdir()) == before


def test_a_full_disk_is_a_resource_error_and_leaves_no_file(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(file.name for file in (bank / "data").iterdir())
    with BankWriter(bank) as writer:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ResourceError, match="No space left"):
            writer.add_file("eval", b"[1]")
        base = writer.current()
        assert base is not None
        with pytest.raises(ResourceError, match="No space left"):
            writer.commit(base.contents, base)
        monkeypatch.undo()
    assert sorted(file.name for file in (bank / "data").iterdir()) == before
    assert list_versions(bank) == [1]
    assert temporary_files(bank) == []


def test_a_failed_sync_of_a_data_file_is_final(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        monkeypatch.setattr(os, "fsync", _input_output_error)
        with pytest.raises(ResourceError, match="to disk"):
            writer.add_file("eval", b"[2]")
        monkeypatch.undo()
        with pytest.raises(ResourceError, match="earlier failure"):
            writer.add_file("eval", b"[2]")
        with pytest.raises(ResourceError, match="earlier failure"):
            writer.commit(base.contents, base)
    assert list_versions(bank) == [1]
    assert temporary_files(bank) == []
    assert not [name for name in os.listdir(bank / "data") if name not in base.all_files()]


def test_a_failed_sync_of_the_manifest_is_final(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        monkeypatch.setattr("m3build_formats.commit.sync_file", _resource_error)
        with pytest.raises(ResourceError, match="lost"):
            writer.commit(base.contents, base)
        monkeypatch.undo()
        with pytest.raises(ResourceError, match="earlier failure"):
            writer.commit(base.contents, base)
    assert list_versions(bank) == [1]
    assert temporary_files(bank) == []


def _input_output_error(descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _resource_error(descriptor: int, name: str) -> None:
    raise ResourceError("lost")


def test_everything_is_synced_before_the_manifest_appears(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, link = os.fsync, os.link

    def place(descriptor: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return "/".join(path.parts[-2:]) if path.is_file() else path.name

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"sync {place(descriptor).split('.tmp-')[0]}")
        fsync(descriptor)

    def recorded_link(source: str, target: str, **options: object) -> None:
        calls.append(f"link {target[-10:]}")
        link(source, target, **options)  # type: ignore[arg-type]

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell which file a descriptor is of")
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "link", recorded_link)
        evaluation = writer.add_file("eval", b"[3]")
        writer.commit(replace(base.contents, files=replace(base.files, eval=evaluation)), base)
    assert calls == [
        "sync data/",
        "link .eval.json",
        "sync data",
        "sync versions/",
        "link 00002.json",
        "sync versions",
    ]


def test_a_file_system_without_links_is_refused_in_words(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with BankWriter(bank) as writer:
        monkeypatch.setattr(os, "link", no_links)
        with pytest.raises(ResourceError, match="no hard links"):
            writer.add_file("eval", b"[4]")
    assert temporary_files(bank) == []


def test_macos_gets_its_full_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    calls: list[int] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: calls.append(command))
    atomic.sync_file(0, "x")
    assert calls == [51]


def test_published_files_cannot_be_written_by_accident(bank: Path) -> None:
    for file in [*(bank / "data").iterdir(), *(bank / "versions").iterdir()]:
        assert file.stat().st_mode & 0o222 == 0


def test_a_directory_with_other_things_is_not_made_a_bank(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="other things"), BankWriter(tmp_path):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["thesis.txt"]


def test_an_empty_new_or_unfinished_directory_becomes_a_bank(tmp_path: Path) -> None:
    build_bank(tmp_path)
    build_bank(tmp_path / "build" / "deep" / "new")
    unfinished = tmp_path / "build" / "unfinished"
    unfinished.mkdir()
    (unfinished / "writer.lock").touch()
    (unfinished / ".DS_Store").touch()
    build_bank(unfinished)


def test_a_file_in_the_place_of_the_bank_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(ResourceError), BankWriter(tmp_path / "f"):
        pass


def test_the_build_directory_is_left_alone(bank: Path) -> None:
    (bank / "build" / "piece").write_text("half done")
    add_version(bank)
    assert (bank / "build" / "piece").read_text() == "half done"
    assert verify(bank).unreachable == ()


def test_workers_without_the_lock_write_the_same_file(bank: Path) -> None:
    with BankWriter(bank) as writer, DataDirectory(bank / "data") as other:
        assert writer.add_file("eval", b"[5]") == other.add_file("eval", b"[5]")
        base = writer.current()
        assert base is not None
        shards = [write_shard(other, chunk_rows(5, 9), 9)]
        made = writer.commit(contents(shards, base.files), base)
    assert json.loads((bank / "versions" / "00000002.json").read_bytes())["sha256"] == made.sha256


def test_an_unknown_kind_of_file_is_refused(bank: Path) -> None:
    with BankWriter(bank) as writer, pytest.raises(ValueError, match="kind"):
        writer.add_file("../escape", b"")
