"""What a writer does to a bank, as cases for crashes and errors: a world before, and a run that may be
repeated after whatever became of the one before it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from inspection import TornError, current_version, judge_version, whole_version
from sample_bank import bank_files, build_bank, chunk_rows, contents, write_shard

from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import FileTarget
from m3build_formats.evaluation_file import write_evaluation
from m3build_formats.gc import collect
from m3build_formats.manifest import Manifest, ShardEntry
from m3build_formats.rollback import rollback
from m3build_formats.verify import verify

ROWS = (9, 4)


class Scenario(ABC):
    """A way to make a version. The world is a directory that is safe on disk before `prepare` and after."""

    name: str
    bank: str
    """The bank's place within the world."""

    def prepare(self, world: Path) -> None:
        """Lays out what is there before the run."""
        build_bank(world / self.bank, ROWS)

    @abstractmethod
    def run(self, world: Path) -> Manifest:
        """Makes the new version and returns it; when it is already there, a further one, so that the next
        writer is tried too."""

    def judge(self, world: Path) -> Manifest | None:
        """The current version, None where there is none yet; raises TornError where it is not whole."""
        return whole_version(world / self.bank)


class WriterScenario(Scenario):
    """One whose writer the cases may hold on to."""

    def run(self, world: Path) -> Manifest:
        with BankWriter(world / self.bank) as writer:
            return self.work(writer)

    @abstractmethod
    def work(self, writer: BankWriter) -> Manifest:
        """What `run` does, with a writer that is open."""


class FirstVersion(WriterScenario):
    """A bank where there was not even the directory above it."""

    name = "the first version of a new bank"
    bank = "place/bank"

    def prepare(self, world: Path) -> None:
        """Nothing is there."""

    def work(self, writer: BankWriter) -> Manifest:
        base = writer.current()
        if base is not None:
            return touch(writer, base)
        return writer.commit(contents(_shards(writer), bank_files(writer)), None)


class SecondVersion(WriterScenario):
    """A version that shares files with the one before: one shard as it was, one new, another evaluation."""

    name = "a second version that shares files"
    bank = "bank"

    def work(self, writer: BankWriter) -> Manifest:
        base = writer.current()
        assert base is not None
        if base.version > 1:
            return touch(writer, base)
        kept = write_shard(writer, chunk_rows(ROWS[0], 0), 0)
        changed = write_shard(writer, chunk_rows(5, 2), 2)
        files = replace(base.files, eval=write_evaluation(writer, {"loss": 0.5}))
        return writer.commit(contents([kept, changed], files, "second"), base)


class Repair(WriterScenario):
    """A version written over three damaged files: one with a flipped bit, one cut off, one missing."""

    name = "replacing damaged files"
    bank = "bank"

    def __init__(self) -> None:
        self.damaged: dict[str, bytes | None] = {}

    def prepare(self, world: Path) -> None:
        manifest = build_bank(world / self.bank, ROWS)
        data = world / self.bank / "data"
        first = manifest.shards[0]
        assert first.memories is not None
        for entry in (first.memories, first.chunks, first.index):
            (data / entry.name).chmod(0o644)
        _flip(data / first.memories.name, first.memories.bytes * 4)
        with open(data / first.chunks.name, "r+b") as file:
            file.truncate(first.chunks.bytes // 2)
        (data / first.index.name).unlink()
        for entry in (first.memories, first.chunks):
            self.damaged[entry.name] = (data / entry.name).read_bytes()
        self.damaged[first.index.name] = None

    def work(self, writer: BankWriter) -> Manifest:
        base = writer.current()
        assert base is not None
        if base.version > 1:
            return touch(writer, base)
        return writer.commit(contents(_shards(writer), bank_files(writer), "repair"), base)

    def judge(self, world: Path) -> Manifest | None:
        """The old version may have each damaged file as it was or repaired, the new one repaired only."""
        bank = world / self.bank
        manifest = current_version(bank)
        if manifest is None or manifest.version > 1:
            return whole_version(bank)
        still = set()
        for name, (_, entry) in manifest.all_files().items():
            path = bank / "data" / name
            found = path.read_bytes() if path.exists() else None
            if found is not None and hashlib.sha256(found).hexdigest() == entry.sha256:
                continue
            if name not in self.damaged or found != self.damaged[name]:
                raise TornError(f"{name} is neither as it was nor repaired")
            still.add(f"data/{name}")
        if still != {problem.file for problem in verify(bank).problems}:
            raise TornError(f"verify sees other damage than {sorted(still)}")
        return manifest


class Rollback(Scenario):
    """The first of two versions made current again."""

    name = "a rollback"
    bank = "bank"

    def prepare(self, world: Path) -> None:
        build_bank(world / self.bank, ROWS)
        SecondVersion().run(world)

    def run(self, world: Path) -> Manifest:
        done = rollback(world / self.bank, 1, wait_seconds=0)
        if done.changed:
            return read_manifest(world / self.bank, done.version)
        return _touch_alone(world / self.bank)


class RollbackOverDamage(Rollback):
    """The same where the manifest of the current version cannot be read."""

    name = "a rollback over a damaged manifest"
    _damaged = b""

    def prepare(self, world: Path) -> None:
        super().prepare(world)
        path = world / self.bank / "versions/00000002.json"
        path.chmod(0o644)
        _flip(path, 999)
        self._damaged = path.read_bytes()

    def judge(self, world: Path) -> Manifest | None:
        """The damaged manifest stays as it is and is no version; every other version is whole."""
        bank = world / self.bank
        if (bank / "versions/00000002.json").read_bytes() != self._damaged:
            raise TornError("the damaged manifest has changed")
        newest = list_versions(bank)[-1]
        manifest = read_manifest(bank, newest if newest > 2 else 1)
        return judge_version(bank, manifest, frozenset({"versions/00000002.json"}))


class Collect(Scenario):
    """Two of three versions removed with their files, then a commit. With ``purge`` unfinished work goes
    too."""

    bank = "bank"

    def __init__(self, *, purge: bool = False) -> None:
        self.purge = purge
        self.name = "a purge" if purge else "a garbage collection"

    def prepare(self, world: Path) -> None:
        bank = world / self.bank
        build_bank(bank, ROWS)
        SecondVersion().run(world)
        with BankWriter(bank) as writer:
            base = writer.current()
            assert base is not None
            shards = [base.shards[1], write_shard(writer, chunk_rows(3, 3), 3)]
            writer.commit(contents(shards, base.files, "third"), base)
        (bank / "build" / "job").mkdir()
        (bank / "build" / "job" / "piece").write_bytes(b"half done")

    def run(self, world: Path) -> Manifest:
        bank = world / self.bank
        if self.purge:
            collect(bank, purge=True)
        else:
            collect(bank, keep=1, grace=0)
        return _touch_alone(bank)

    def judge(self, world: Path) -> Manifest | None:
        """What was removed before the commit never comes back."""
        bank = world / self.bank
        manifest = whole_version(bank)
        if manifest is None:
            raise TornError("no version is left")
        if manifest.version > 3:
            back = [str(number) for number in list_versions(bank) if number < 3]
            back += [name for name in verify(bank).unreachable if name.startswith("data/")]
            if self.purge:
                back += [str(path.name) for path in (bank / "build").rglob("*")]
            if back:
                raise TornError(f"what was removed is there again: {', '.join(back)}")
        return manifest


SCENARIOS: Final[tuple[Callable[[], Scenario], ...]] = (
    FirstVersion,
    SecondVersion,
    Repair,
    Rollback,
    RollbackOverDamage,
    Collect,
    lambda: Collect(purge=True),
)


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _shards(target: FileTarget) -> list[ShardEntry]:
    return [write_shard(target, chunk_rows(rows, shard), shard) for shard, rows in enumerate(ROWS)]


def _touch_alone(bank: Path) -> Manifest:
    with BankWriter(bank) as writer:
        base = read_manifest(bank)
        return touch(writer, base)


def touch(writer: BankWriter, base: Manifest) -> Manifest:
    """The contents of ``base`` once more, in a version of their own."""
    return writer.commit(replace(base.contents, operation="touch"), base)
