"""A bank that is reached through a link, and one whose directories lead elsewhere when something is to be
written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forge import Forge
from server import Reader

from m3build_formats.commit import BankWriter
from m3build_formats.errors import ResourceError


def test_a_whole_bank_may_be_reached_through_a_link(
    tmp_path: Path, sound: dict[str, Forge], reader: Reader
) -> None:
    bank = sound["SQfp16"].write(tmp_path / "bank")
    (tmp_path / "link").symlink_to(bank)
    answer = reader.read(tmp_path / "link", commands=True)
    assert not [step for step, outcome in answer["outcomes"].items() if outcome["error"]]
    assert answer["opened"] == []


def test_a_writer_does_not_follow_links_out_of_the_bank(tmp_path: Path, sound: dict[str, Forge]) -> None:
    bank, outside = sound["SQfp16"].write(tmp_path / "bank"), tmp_path / "outside"
    (bank / "build").mkdir()
    (bank / "writer.lock").touch()
    outside.mkdir()
    (outside / ".tmp-keep").touch()
    for name in ("data", "versions", "build"):
        moved = tmp_path / f"moved-{name}"
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
