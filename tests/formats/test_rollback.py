from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from corpus_bank import Doc, commit_corpus, put_newer_manifest
from sample_bank import add_version, build_bank

from m3build_formats.bank import list_versions, manifest_name, open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import (
    BusyError,
    CorruptError,
    MismatchError,
    NewerFormatError,
    ResourceError,
    UsageError,
)
from m3build_formats.gc import collect
from m3build_formats.history import same_contents
from m3build_formats.manifest import Manifest, VersionContents
from m3build_formats.rollback import rollback
from m3build_formats.verify import verify


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A bank of two versions; one of two shards differs."""
    kept = [Doc("a", ("one", "two"))]
    commit_corpus(tmp_path / "bank", [kept, [Doc("b", ("three",))]])
    commit_corpus(tmp_path / "bank", [kept, [Doc("b", ("drei",)), Doc("c", ("vier",))]])
    return tmp_path / "bank"


def files_of(bank: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of every file of the bank but the lock, which a writer writes its number into."""
    found = {}
    for file in sorted(bank.rglob("*")):
        if file.is_file() and file.name != "writer.lock":
            status = file.stat()
            found[str(file.relative_to(bank))] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_rollback_makes_a_new_version_that_holds_the_same_and_overwrites_nothing(edited: Path) -> None:
    before = files_of(edited)
    first, second = read_manifest(edited, 1), read_manifest(edited, 2)
    done = rollback(edited, 1)
    made = read_manifest(edited)
    assert (done.version, done.restored, done.left, done.changed) == (3, 1, 2, True)
    assert done.sha256 == made.sha256
    assert (done.files_checked, done.left_damaged) == (len(first.all_files()), False)
    assert done.bytes_checked == sum(entry.bytes for _, entry in first.all_files().values())
    assert (made.version, made.operation) == (3, "rollback")
    assert made.base is not None
    assert (made.base.version, made.base.sha256) == (2, second.sha256)
    assert same_contents(made, first)
    assert not same_contents(made, second)
    after = files_of(edited)
    assert after.keys() - before.keys() == {"versions/00000003.json"}
    assert before.items() <= after.items()
    assert verify(edited).ok
    with open_bank(edited) as opened:
        assert opened.shards[1].chunk(0).text == "three"


def test_forward_again_is_a_rollback_too(edited: Path) -> None:
    second = read_manifest(edited)
    rollback(edited, 1)
    done = rollback(edited, 2)
    assert (done.version, done.left) == (4, 3)
    assert same_contents(read_manifest(edited), second)


def test_what_is_current_already_is_left_as_it_is_even_while_another_writes(edited: Path) -> None:
    first = read_manifest(edited, 1)
    rollback(edited, 1)
    with BankWriter(edited):
        for version in (1, 3):
            done = rollback(edited, version, wait_seconds=0)
            assert (done.changed, done.version, done.left, done.restored) == (False, 3, 3, version)
    assert list_versions(edited) == [1, 2, 3]
    assert same_contents(first, read_manifest(edited))


@pytest.mark.parametrize("quick", [False, True])
def test_a_missing_file_is_named_and_nothing_is_committed(edited: Path, quick: bool) -> None:
    name = read_manifest(edited, 1).shards[1].chunks.name
    (edited / "data" / name).unlink()
    with pytest.raises(CorruptError, match=name):
        rollback(edited, 1, quick=quick)
    assert list_versions(edited) == [1, 2]
    assert verify(edited, version=2).ok


@pytest.mark.parametrize("kind", ["index", "embeddings", "documents_file", "memories"])
def test_a_flipped_bit_is_found_unless_quick(edited: Path, kind: str) -> None:
    entry = getattr(read_manifest(edited, 1).shards[1], kind)
    damage(edited / "data" / entry.name)
    with pytest.raises(CorruptError, match=entry.name):
        rollback(edited, 1)
    assert list_versions(edited) == [1, 2]
    done = rollback(edited, 1, quick=True)
    assert (done.quick, done.bytes_checked) == (True, 0)


@pytest.mark.parametrize("quick", [False, True])
def test_a_file_of_another_size_or_a_link_is_found(edited: Path, tmp_path: Path, quick: bool) -> None:
    chunks, index = (getattr(read_manifest(edited, 1).shards[1], kind).name for kind in ("chunks", "index"))
    (edited / "data" / chunks).chmod(0o644)
    os.truncate(edited / "data" / chunks, 100)
    (edited / "data" / index).rename(tmp_path / "elsewhere")
    (edited / "data" / index).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptError) as raised:
        rollback(edited, 1, quick=quick)
    assert chunks in str(raised.value)
    assert index in str(raised.value)


def test_many_bad_files_are_counted_and_some_named(edited: Path) -> None:
    first = read_manifest(edited, 1)
    for name in first.all_files():
        (edited / "data" / name).unlink()
    with pytest.raises(CorruptError, match=f"and {len(first.all_files()) - 5} more") as raised:
        rollback(edited, 1)
    assert str(raised.value).count(".arrow") + str(raised.value).count(".index") <= 5


def test_a_bank_without_data_is_corrupt_and_gets_no_directory(edited: Path) -> None:
    (edited / "data").rename(edited.parent / "data")
    with pytest.raises(CorruptError, match="no such directory"):
        rollback(edited, 1)
    assert not (edited / "data").exists()


def test_a_version_that_is_not_there_is_a_usage_error_that_lists_those_that_are(edited: Path) -> None:
    for version in (7, 0, -1):
        with pytest.raises(UsageError, match="it has 1, 2"):
            rollback(edited, version)


def test_what_is_no_bank_is_a_usage_error_and_stays_as_it_is(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="no bank there"):
            rollback(place, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_version_with_a_damaged_manifest_cannot_be_restored(edited: Path) -> None:
    damage(edited / "versions" / manifest_name(1))
    with pytest.raises(CorruptError, match=manifest_name(1)):
        rollback(edited, 1)
    assert list_versions(edited) == [1, 2]


def test_a_busy_bank_is_waited_for_and_then_given_up(edited: Path) -> None:
    with BankWriter(edited), pytest.raises(BusyError, match=f"process {os.getpid()} "):
        rollback(edited, 1, wait_seconds=0.1)
    held = BankWriter(edited)
    held.__enter__()
    timer = threading.Timer(0.2, held.__exit__, (None, None, None))
    timer.start()
    assert rollback(edited, 1, wait_seconds=60).version == 3
    timer.join()


def test_hashing_holds_up_no_other_writer_whose_version_becomes_the_base(edited: Path) -> None:
    told: list[int] = []

    @contextmanager
    def meanwhile(total: int) -> Iterator[Callable[[int], object]]:
        told.append(-total)
        yield told.append
        add_version(edited, "meanwhile")

    done = rollback(edited, 1, watch=meanwhile)
    made = read_manifest(edited)
    assert (done.version, done.left, made.operation) == (4, 3, "rollback")
    assert made.base is not None
    assert made.base.sha256 == read_manifest(edited, 3).sha256
    assert read_manifest(edited, 3).operation == "meanwhile"
    assert sum(told) == 0
    assert -told[0] == done.bytes_checked


def test_the_same_rollback_by_another_in_the_meantime_is_enough(edited: Path) -> None:
    @contextmanager
    def meanwhile(total: int) -> Iterator[Callable[[int], object]]:
        yield lambda _: None
        rollback(edited, 1)

    done = rollback(edited, 1, watch=meanwhile)
    assert (done.changed, done.version) == (False, 3)
    assert list_versions(edited) == [1, 2, 3]


@pytest.mark.parametrize("what", ["version", "file"])
def test_a_version_that_is_removed_while_it_is_hashed_is_not_restored(edited: Path, what: str) -> None:
    name = read_manifest(edited, 1).shards[1].chunks.name

    @contextmanager
    def meanwhile(total: int) -> Iterator[Callable[[int], object]]:
        yield lambda _: None
        if what == "version":
            collect(edited, keep=1, grace=0)
        else:
            (edited / "data" / name).unlink()

    error, words = (UsageError, "removed a moment ago") if what == "version" else (CorruptError, name)
    with pytest.raises(error, match=words):
        rollback(edited, 1, watch=meanwhile)
    assert list_versions(edited)[-1] == 2
    assert verify(edited, version=2).ok


def overtake(monkeypatch: pytest.MonkeyPatch, bank: Path, times: int) -> None:
    """Lets a writer that takes no lock make a version just before each of the first commits."""
    original = BankWriter.commit
    left = [times]

    def overtaken(
        self: BankWriter, contents: VersionContents, base: Manifest | None, *, over_damaged: int | None = None
    ) -> Manifest:
        if left[0]:
            left[0] -= 1
            current = self.current()
            assert current is not None
            original(self, current.contents, current)
        return original(self, contents, base, over_damaged=over_damaged)

    monkeypatch.setattr(BankWriter, "commit", overtaken)


def test_a_version_that_appears_under_its_hands_becomes_the_base(
    edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtake(monkeypatch, edited, 3)
    done = rollback(edited, 1)
    assert (done.version, done.left) == (6, 5)
    assert same_contents(read_manifest(edited), read_manifest(edited, 1))


def test_one_that_is_overtaken_again_and_again_gives_up_as_busy(
    edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtake(monkeypatch, edited, 100)
    with pytest.raises(BusyError, match="5 times"):
        rollback(edited, 1)
    assert list_versions(edited) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("how", ["flipped", "cut off", "empty"])
def test_a_damaged_current_version_is_gone_over(edited: Path, how: str) -> None:
    path = edited / "versions" / manifest_name(2)
    path.chmod(0o644)
    if how == "flipped":
        damage(path)
    else:
        os.truncate(path, 100 if how == "cut off" else 0)
    done = rollback(edited, 1)
    assert (done.version, done.left, done.left_damaged, done.changed) == (3, 2, True, True)
    made = read_manifest(edited)
    assert made.base is not None
    assert (made.base.version, made.base.sha256) == (1, read_manifest(edited, 1).sha256)
    assert {problem.file for problem in verify(edited).problems} == {f"versions/{manifest_name(2)}"}
    assert add_version(edited).version == 4


def test_a_current_version_of_a_newer_format_is_not_gone_over(edited: Path) -> None:
    put_newer_manifest(edited, 3)
    with pytest.raises(NewerFormatError, match="upgrade m3build"):
        rollback(edited, 1)
    first = read_manifest(edited, 1)
    with BankWriter(edited) as writer, pytest.raises(NewerFormatError):
        writer.commit(first.contents, first, over_damaged=3)
    assert list_versions(edited) == [1, 2, 3]


def test_no_commit_goes_over_a_version_that_is_sound_or_not_current(edited: Path) -> None:
    first = read_manifest(edited, 1)
    with BankWriter(edited) as writer:
        for version in (1, 2, 3):
            with pytest.raises(BusyError, match="no longer damaged and current"):
                writer.commit(first.contents, first, over_damaged=version)
    damage(edited / "versions" / manifest_name(1))
    with BankWriter(edited) as writer, pytest.raises(BusyError, match="no longer damaged and current"):
        writer.commit(first.contents, first, over_damaged=1)
    assert list_versions(edited) == [1, 2]


def test_a_full_disk_leaves_the_bank_as_it_was(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, os.strerror(28))

    before = files_of(edited)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceError, match="No space left"):
        rollback(edited, 1)
    assert files_of(edited) == before


def test_a_rollback_needs_neither_numpy_nor_pyarrow(edited: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from m3build_formats.rollback import rollback\n"
        "from m3build_formats.history import versions\n"
        f"rollback({os.fspath(edited)!r}, 1); versions({os.fspath(edited)!r})\n"
        "bad = {'numpy', 'pyarrow', 'zstandard', 'torch', 'faiss'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list_versions(edited) == [1, 2, 3]


def test_a_bank_of_one_version_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    build_bank(tmp_path)
    assert not rollback(tmp_path, 1).changed
    assert list_versions(tmp_path) == [1]


def test_what_was_excluded_since_comes_back_only_by_name(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    first = build_bank(bank)
    excluding = {"settings": {"exclude": ["a/*", "b"]}}
    with BankWriter(bank) as writer:
        writer.commit(replace(first.contents, sources=excluding), first)
    with pytest.raises(MismatchError, match=r"version 1 may hold .* a/\*, b"):
        rollback(bank, 1)
    with pytest.raises(MismatchError, match=r"excluded since: b\."):
        rollback(bank, 1, readmit=["a/*"])
    assert list_versions(bank) == [1, 2]
    assert rollback(bank, 1, readmit=["a/*", "b"]).version == 3
    assert rollback(bank, 2).version == 4
    assert rollback(bank, 1, readmit=["a/*", "b", "c"]).version == 5


def test_what_was_excluded_before_a_damaged_version_stays_out_too(tmp_path: Path) -> None:
    first = build_bank(tmp_path)
    with BankWriter(tmp_path) as writer:
        second = writer.commit(replace(first.contents, sources={"settings": {"exclude": ["a/*"]}}), first)
        writer.commit(second.contents, second)
    damage(tmp_path / "versions" / manifest_name(3))
    with pytest.raises(MismatchError, match=r"excluded since: a/\*"):
        rollback(tmp_path, 1)
    assert rollback(tmp_path, 2).version == 4
    damage(tmp_path / "versions" / manifest_name(4))
    assert rollback(tmp_path, 1, readmit=["a/*"]).version == 5
