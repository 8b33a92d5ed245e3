"""Faults that the rows found once, each as one small claim."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from calls import Call
from disk_model import Disk, State, after_power_loss, lay_out
from recorder import Recorder
from sample_bank import add_version, build_bank
from scenarios import SecondVersion

from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import ResourceError
from m3build_formats.rollback import rollback
from m3build_formats.verify import verify


class FailingOnce:
    """Lets the first call of a name and path fail with an error number."""

    def __init__(self, name: str, path: str, code: int) -> None:
        self._name = name
        self._path = re.compile(path)
        self._code = code
        self.failed = False

    def __call__(self, call: Call, action: Callable[[], Any]) -> Any:
        if self.failed or call.name != self._name or not self._path.fullmatch(call.path):
            return action()
        self.failed = True
        if call.name == "close":
            action()
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize("name", ["open", "listdir", "fsync"])
def test_a_writer_that_cannot_begin_lets_go_of_the_lock(bank: Path, name: str) -> None:
    path = {"open": "bank/data", "listdir": "bank/data", "fsync": "bank/versions"}[name]
    failing = FailingOnce(name, path, errno.EMFILE)
    with Recorder(bank.parent, failing) as recorder, pytest.raises(ResourceError), BankWriter(bank):
        pass
    assert failing.failed
    assert recorder.left_open == []
    add_version(bank)


def test_directories_that_a_dead_writer_made_are_safe_with_the_next_commit(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with Recorder(tmp_path, disk=disk):
        os.makedirs(tmp_path / "place" / "bank")
        build_bank(tmp_path / "place" / "bank", (2,))
    for tree in after_power_loss(disk.state(), 64, Random(0)):
        assert "place/bank/versions/00000001.json" in tree


def test_whatever_a_power_loss_leaves_of_a_new_bank_is_taken_for_one(tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    disk, states = Disk(world), list[State]()

    def play(call: Call, action: Callable[[], Any]) -> Any:
        states.append(disk.state())
        return action()

    with Recorder(world, play, disk), BankWriter(world / "bank"):
        pass
    trees = [tree for state in states for tree in after_power_loss(state, 256, Random(0))]
    assert any("bank/data" in tree and "bank/versions" not in tree for tree in trees)
    for number, tree in enumerate(trees):
        lay_out(tree, tmp_path / str(number))
        with BankWriter(tmp_path / str(number) / "bank") as writer:
            assert writer.current() is None


def test_a_version_that_a_writer_sees_is_safe(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    never = lambda call, action: None if (call.name, call.path) == ("fsync", "bank/versions") else action()  # noqa: E731
    with Recorder(tmp_path, never, disk):
        build_bank(tmp_path / "bank", (2,))
    assert any(
        "bank/versions/00000001.json" not in tree for tree in after_power_loss(disk.state(), 64, Random(0))
    )
    with Recorder(tmp_path, disk=disk), BankWriter(tmp_path / "bank"):
        pass
    assert all(
        "bank/versions/00000001.json" in tree for tree in after_power_loss(disk.state(), 64, Random(0))
    )


def test_a_file_that_cannot_be_looked_at_is_closed_again(bank: Path) -> None:
    failing = FailingOnce("fstat", r"bank/versions/.*", errno.EIO)
    with Recorder(bank.parent, failing) as recorder, pytest.raises(ResourceError):
        read_manifest(bank)
    assert recorder.left_open == []


@pytest.mark.parametrize("use", [list_versions, read_manifest, verify])
def test_versions_that_cannot_be_listed_are_a_resource_error(
    bank: Path, use: Callable[[Path], object]
) -> None:
    with (
        Recorder(bank.parent, FailingOnce("listdir", "bank/versions", errno.EIO)),
        pytest.raises(ResourceError, match="Input/output error"),
    ):
        use(bank)


@pytest.mark.parametrize("name", ["open", "listdir"])
@pytest.mark.parametrize("directory", ["bank", "bank/data"])
def test_verify_never_leaves_out_what_it_could_not_list(bank: Path, name: str, directory: str) -> None:
    (bank / "data" / "stranger").touch()
    (bank / "stranger").touch()
    calls = 0

    def last(call: Call, action: Callable[[], Any]) -> Any:
        nonlocal calls
        calls += (call.name, call.path) == (name, directory)
        if (call.name, call.path) == (name, directory) and calls == wanted:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return action()

    wanted = -1
    with Recorder(bank.parent, last):
        assert verify(bank).unreachable == ("data/stranger", "stranger")
    wanted, calls = calls, 0
    with Recorder(bank.parent, last), pytest.raises(ResourceError):
        verify(bank)


@pytest.mark.parametrize("path", [r"bank/data/\.tmp-.*", r"bank/versions/\.tmp-.*", "bank/writer.lock"])
def test_a_close_that_fails_after_the_bytes_are_safe_fails_no_commit(bank: Path, path: str) -> None:
    failing = FailingOnce("close", path, errno.EIO)
    with Recorder(bank.parent, failing), BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        writer.add_file("eval", b"[1]")
        writer.commit(base.contents, base)
    assert failing.failed
    assert list_versions(bank) == [1, 2]
    add_version(bank)


def test_a_rollback_that_cannot_look_at_the_data_is_a_resource_error(bank: Path) -> None:
    SecondVersion().run(bank.parent)
    failing = FailingOnce("stat", "bank/data", errno.EACCES)
    with Recorder(bank.parent, failing), pytest.raises(ResourceError):
        rollback(bank, 1, wait_seconds=0)
    assert failing.failed
