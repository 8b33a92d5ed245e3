"""Random histories of one bank: compiles, rollbacks, collections, readers, damage and sudden deaths, in any
order, against a model that is a dictionary of versions.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
from crashes import Death, KilledError, unsynced
from fake_compile import NAMES, Documents, compile_bank, documents_of
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inspection import reads
from recorder import Recorder
from sample_bank import temporary_files

from m3build_formats.bank import list_versions, open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import CorruptError
from m3build_formats.gc import collect
from m3build_formats.manifest import Manifest
from m3build_formats.open_bank import BankFiles
from m3build_formats.rollback import rollback
from m3build_formats.verify import verify

MOST_READERS = 4

documents = st.dictionaries(
    st.sampled_from(NAMES),
    st.lists(st.text("ab é文", min_size=4, max_size=9), max_size=4).map(tuple),
    max_size=len(NAMES),
)


@dataclass(frozen=True)
class Reader:
    """An open version and what it gave when it was opened."""

    opened: BankFiles
    good: dict[str, Any]


class Histories(RuleBasedStateMachine):
    """The bank is made by the first step; every step ends with `verify` and a look at the current version."""

    steps: ClassVar[Counter[str]] = Counter()

    @initialize(found=documents)
    def start(self, found: Documents) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="m3build-history-"))
        self.bank = self.place / "bank"
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(unsynced())
        self.held: dict[int, Documents] = {}
        self.digests: dict[int, str] = {}
        self.damaged: set[int] = set()
        self.readers: list[Reader] = []
        self.compile(found)

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.stack.close()
            shutil.rmtree(self.place)

    @property
    def numbers(self) -> list[int]:
        """Versions that there are, by the model."""
        return sorted(self.held)

    @property
    def sound(self) -> list[int]:
        """Those whose manifest was not damaged."""
        return [number for number in self.numbers if number not in self.damaged]

    def _current_is_sound(self) -> bool:
        return self.numbers[-1] not in self.damaged

    @rule(found=documents)
    @precondition(_current_is_sound)
    def compile(self, found: Documents) -> None:
        """Changed documents, a new version."""
        with BankWriter(self.bank) as writer:
            made = compile_bank(writer, found, writer.current())
        assert made.version == (self.numbers[-1] if self.held else 0) + 1
        self._made(made, found, "compile")

    @rule(found=documents, number=st.integers(0, 200), after=st.booleans())
    @precondition(_current_is_sound)
    def die_while_compiling(self, found: Documents, number: int, after: bool) -> None:
        """A compile whose process dies at some call: the old version or the new one."""
        death = Death(number, after=after)
        with (
            Recorder(self.bank, death),
            contextlib.suppress(KilledError),
            BankWriter(self.bank) as writer,
        ):
            compile_bank(writer, found, writer.current())
        self.steps["dead writers"] += death.dead
        current = read_manifest(self.bank)
        if current.version not in self.held:
            assert current.version == self.numbers[-1] + 1
            self._made(current, found, "versions of dead writers")

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """Any whole version made current."""
        if not self.sound:
            return
        chosen = data.draw(st.sampled_from(self.sound))
        current = self.numbers[-1]
        done = rollback(self.bank, chosen, wait_seconds=0)
        assert (done.restored, done.left) == (chosen, current)
        if done.changed:
            assert done.version == current + 1
            self._made(read_manifest(self.bank), self.held[chosen], "rollbacks")
        else:
            assert done.version == current
            assert self.held[current] == self.held[chosen]
            self.steps["rollbacks to the same"] += 1

    @rule(keep=st.integers(1, 4), dry_run=st.booleans())
    def collect(self, keep: int, dry_run: bool) -> None:
        """All but the newest versions removed, with what only they needed."""
        before = sorted(path.name for path in (self.bank / "data").iterdir())
        if self.damaged & set(self.numbers[-keep:]):
            try:
                collect(self.bank, keep=keep, grace=0, dry_run=dry_run)
            except CorruptError:
                self.steps["collections refused"] += 1
            else:
                raise AssertionError("collected though a version to be kept is damaged")
            assert sorted(path.name for path in (self.bank / "data").iterdir()) == before
            return
        report = collect(self.bank, keep=keep, grace=0, dry_run=dry_run)
        assert list(report.removed) == self.numbers[:-keep]
        if dry_run:
            assert sorted(path.name for path in (self.bank / "data").iterdir()) == before
            self.steps["dry runs"] += 1
            return
        self._forget(self.numbers[:-keep])
        self.steps["collections"] += 1
        assert verify(self.bank).unreachable == ()

    @rule()
    @precondition(_current_is_sound)
    def purge(self) -> None:
        """The current version alone stays."""
        collect(self.bank, purge=True)
        self._forget(self.numbers[:-1])
        self.steps["purges"] += 1
        assert verify(self.bank).unreachable == ()

    @rule(data=st.data(), pinned=st.sampled_from(["current", "number", "digest"]))
    def open_reader(self, data: st.DataObject, pinned: str) -> None:
        """A reader of the current or a pinned version, kept open from here on."""
        if len(self.readers) == MOST_READERS or not self.sound:
            return
        if pinned == "current":
            if not self._current_is_sound():
                return
            number, opened = self.numbers[-1], open_bank(self.bank)
        else:
            number = data.draw(st.sampled_from(self.sound))
            if pinned == "digest":
                opened = open_bank(self.bank, expect=f"sha256:{self.digests[number]}")
            else:
                opened = open_bank(self.bank, number)
        assert opened.manifest.sha256 == self.digests[number]
        assert documents_of(opened) == self.held[number]
        self.readers.append(Reader(opened, {name: read() for name, read in reads(opened)}))
        self.steps["readers opened"] += 1

    @rule()
    @precondition(lambda self: self.readers)
    def read_again(self) -> None:
        """Every open reader gives the same bytes as on its first day."""
        for reader in self.readers:
            for name, read in reads(reader.opened):
                assert read() == reader.good[name], name
        self.steps["readers read again"] += len(self.readers)

    @rule(data=st.data())
    @precondition(lambda self: self.readers)
    def close_reader(self, data: st.DataObject) -> None:
        """One reader less."""
        self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1))).opened.close()
        self.steps["readers closed"] += 1

    @rule(data=st.data(), where=st.floats(0, 1, exclude_max=True), remove=st.booleans())
    @precondition(lambda self: self.sound)
    def damage_and_repair(self, data: st.DataObject, where: float, remove: bool) -> None:
        """A data file damaged: found, never read; then written again: whole."""
        number = data.draw(st.sampled_from(self.sound))
        files = read_manifest(self.bank, number).all_files()
        name = data.draw(st.sampled_from(sorted(files)))
        path = self.bank / "data" / name
        good = path.read_bytes()
        path.unlink()
        if not remove:
            path.write_bytes(_flipped(good, where))
        assert f"data/{name}" in {problem.file for problem in verify(self.bank).problems}
        try:
            with open_bank(self.bank, number) as opened:
                for _, read in reads(opened):
                    read()
        except CorruptError:
            self.steps["damage refused"] += 1
        else:
            # Only the footer, which no read of a bank uses, can be damaged without any read seeing it.
            batches = files[name][1].batches
            assert batches is not None
            ends = (batches.head_bytes, *batches.ends)
            assert int(where * 8 * len(good)) // 8 >= ends[-1]
        with BankWriter(self.bank) as writer:
            assert writer.add_file(files[name][0], good).name == name
        assert path.read_bytes() == good
        self.steps["files repaired"] += 1

    @rule(where=st.floats(0, 1, exclude_max=True))
    @precondition(lambda self: self._current_is_sound() and len(self.sound) > 1)
    def damage_manifest(self, where: float) -> None:
        """The current manifest damaged: refused by name from here on, until a collection takes it."""
        path = self.bank / "versions" / f"{self.numbers[-1]:08d}.json"
        damaged = _flipped(path.read_bytes(), where)
        path.unlink()
        path.write_bytes(damaged)
        self.damaged.add(self.numbers[-1])
        self.steps["manifests damaged"] += 1

    @invariant()
    def whole(self) -> None:
        """The versions are those of the model, all of them sound but what was damaged on purpose, and the
        current one holds its documents."""
        if not hasattr(self, "place") or not self.held:
            return
        self.steps["steps"] += 1
        assert list_versions(self.bank) == self.numbers
        damaged = {f"versions/{number:08d}.json" for number in self.damaged}
        assert {problem.file for problem in verify(self.bank).problems} == damaged
        if self._current_is_sound():
            with open_bank(self.bank) as opened:
                assert opened.manifest.sha256 == self.digests[self.numbers[-1]]
                assert documents_of(opened) == self.held[self.numbers[-1]]
        else:
            try:
                open_bank(self.bank)
            except CorruptError:
                return
            raise AssertionError("a damaged manifest was read")

    def _made(self, made: Manifest, found: Documents, counted: str) -> None:
        self.held[made.version], self.digests[made.version] = dict(found), made.sha256
        self.steps[counted] += 1
        if counted != "versions of dead writers":
            assert temporary_files(self.bank) == []

    def _forget(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.held[number], self.digests[number]
            self.damaged.discard(number)


def _flipped(data: bytes, where: float) -> bytes:
    bit = int(where * 8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def history_settings(examples: int, steps: int) -> settings:
    """The same histories in every run: found faults can be seen again."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
