"""Damage to the files of a bank: all of it found and named by `verify`, none of it read as if it were right.

Index files are only checked by their digest here: no damaged byte is handed to FAISS.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from crashes import SEED, unsynced
from inspection import answers, wrong_answers
from random_bank import differences, make_random_bank
from sample_bank import INDEX, chunk_rows, contents, write_shard
from tally import Tally

from m3build_formats.arrays_file import write_arrays
from m3build_formats.bank import read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.entries import FileEntry
from m3build_formats.evaluation_file import write_evaluation
from m3build_formats.layout import SUFFIXES
from m3build_formats.manifest import BankFileEntries, Manifest
from m3build_formats.rejects_file import RejectRow, write_rejects
from m3build_formats.shard_tables import write_index
from m3build_formats.verify import Problem, verify

KINDS: Final = tuple(SUFFIXES)
_FIRST: Final = "versions/00000001.json"
_SECOND: Final = "versions/00000002.json"


def make_bank(path: Path, seed: int = 0, rows: tuple[int, ...] = (46, 3)) -> Manifest:
    """A bank in which every kind of file is there and has at least 10,000 bits."""
    random = Random(seed)
    with BankWriter(path) as writer:
        shards = []
        for number, count in enumerate(rows):
            shard = write_shard(writer, chunk_rows(count, number + 10 * seed), number + 10 * seed)
            index = write_index(writer, INDEX + random.randbytes(1300))
            shards.append(replace(shard, index=index))
        arrays = {f"array {number}": np.arange(seed, seed + 60, dtype=np.uint32) for number in range(3)}
        rejects = [RejectRow(f"{n}.jsonl", f"line {n}", random.randbytes(60).hex()) for n in range(20)]
        files = BankFileEntries(
            codec=write_arrays(writer, "codec", arrays),
            embedder=write_arrays(writer, "embedder", arrays | {"more": np.ones((3, 4), np.float32)}),
            rejects=write_rejects(writer, rejects),
            eval=write_evaluation(writer, {"losses": [random.random() for _ in range(80)]}),
        )
        return writer.commit(contents(shards, files), None)


class CorruptionCases:
    """One bank, damaged in one way after the other. ``place`` is a directory for it."""

    def __init__(self, place: Path, tally: Tally, rows: tuple[int, ...] = (46, 3)) -> None:
        self.place = place
        self.tally = tally
        self.bank = place / "bank"
        with unsynced():
            self.manifest = make_bank(self.bank, rows=rows)
        self.good = answers(self.bank)
        assert verify(self.bank).ok
        for file in [*(self.bank / "data").iterdir(), self.bank / _FIRST]:
            file.chmod(0o644)

    def entry(self, kind: str) -> FileEntry:
        """The file of a kind that cases damage: the first shard's, or the bank's."""
        if kind in ("codec", "embedder", "rejects", "eval"):
            found = getattr(self.manifest.files, kind)
        else:
            found = dict(self.manifest.shards[0].files())[kind]
        assert isinstance(found, FileEntry)
        return found

    def flip_manifest(self, step: int = 1) -> None:
        """Every ``step``-th bit of the manifest, one at a time."""
        for bit in range(0, 8 * len((self.bank / _FIRST).read_bytes()), step):
            with self._flipped(_FIRST, bit):
                self._judge(f"bit {bit} of the manifest", {_FIRST}, "flips in a manifest")

    def flip_data(self, kind: str, count: int) -> None:
        """``count`` different bits of a file of this kind, drawn at random."""
        entry = self.entry(kind)
        random = Random(f"{SEED} {kind}")
        for bit in random.sample(range(8 * entry.bytes), min(count, 8 * entry.bytes)):
            row = self._row_of(entry, bit // 8)
            with self._flipped(f"data/{entry.name}", bit):
                case = f"bit {bit} of {kind}"
                problems = self._judge(case, {f"data/{entry.name}"}, f"flips in {kind}")
                if [problem.row for problem in problems] != [row]:
                    self.tally.find(f"{case}: the row named is not {row}")

    def other_sizes(self, kind: str) -> None:
        """Cut off at every length class, and extended."""
        entry = self.entry(kind)
        data = (self.bank / "data" / entry.name).read_bytes()
        for size in sorted(_lengths(entry)):
            self._exchanged(entry, data[:size], f"{kind} cut off at {size}", "files cut off")
        for more in (b"\0", b"x", bytes(8), data[-8:], data, bytes(1 << 16)):
            self._exchanged(entry, data + more, f"{kind} with {len(more)} bytes more", "files extended")

    def other_bytes(self, kind: str, sectors: int) -> None:
        """The right size with other bytes: sectors zeroed, doubled or lost in the middle; all zero."""
        entry = self.entry(kind)
        data = (self.bank / "data" / entry.name).read_bytes()
        random = Random(f"{SEED} {kind} sectors")
        found = {bytes(len(data)), data[::-1], data[1:] + data[:1], b"\xff" * len(data)}
        for _ in range(sectors):
            size = random.choice((8, 64, 512))
            start = random.randrange(max(1, len(data) - size))
            part = data[start : start + size]
            found.add(data[:start] + bytes(len(part)) + data[start + len(part) :])
            found.add((data[:start] + part + data[start:])[: len(data)])
            found.add(data[:start] + random.randbytes(len(part)) + data[start + len(part) :])
        for number, other in enumerate(sorted(found - {data})):
            self._exchanged(entry, other, f"{kind} with other bytes, {number}", "files with other bytes")

    def missing(self, kind: str) -> None:
        """Not there, or something that is not a file."""
        entry = self.entry(kind)
        path, file = self.bank / "data" / entry.name, f"data/{entry.name}"
        aside = self.place / "aside"
        makers: dict[str, Callable[[], object]] = {
            "missing": lambda: None,
            "a directory": path.mkdir,
            "a link to the same bytes": lambda: path.symlink_to(aside),
            "a FIFO": lambda: os.mkfifo(path),
        }
        for words, make in makers.items():
            path.rename(aside)
            make()
            self._judge(f"{kind} is {words}", {file}, "files missing or of another type")
            if path.is_dir():
                path.rmdir()
            elif words != "missing":
                path.unlink()
            aside.rename(path)

    def swapped(self) -> None:
        """Any two files in each other's place: of one kind, and of different ones."""
        names = sorted(self.manifest.all_files())
        for one, two in combinations(names, 2):
            first, second = self.bank / "data" / one, self.bank / "data" / two
            self._exchange(first, second)
            self._judge(f"{one} and {two} swapped", {f"data/{one}", f"data/{two}"}, "pairs of files swapped")
            self._exchange(first, second)

    def other_manifests(self) -> None:
        """Manifests of another bank, of another version, cut off, extended."""
        with unsynced(), self._copies() as (bank, other):
            with BankWriter(bank) as writer:
                base = writer.current()
                assert base is not None
                second = writer.commit(replace(base.contents, operation="second"), base)
            with BankWriter(other) as writer:
                base = writer.current()
                assert base is not None
                writer.commit(replace(base.contents, operation="second"), base)
            good = answers(bank)
            one, two = (bank / _FIRST).read_bytes(), (bank / _SECOND).read_bytes()
            foreign_one, foreign_two = (other / _FIRST).read_bytes(), (other / _SECOND).read_bytes()
            foreign = {f"data/{name}" for name in read_manifest(other).all_files()}
            missing = foreign - {f"data/{name}" for name in second.all_files()}
            cases: list[tuple[str, bytes, bytes, set[str]]] = [
                ("the older manifest over the newer number", one, one, {_SECOND}),
                ("the newer manifest over the older number", two, two, {_FIRST}),
                ("both exchanged", two, one, {_FIRST, _SECOND}),
                ("version 2 of another bank", one, foreign_two, {_SECOND, *missing}),
                ("version 1 of another bank", foreign_one, two, {_SECOND, *missing}),
                ("both of another bank", foreign_one, foreign_two, missing),
            ]
            sizes = (0, 1, 77, 78, 79, len(two) // 2, len(two) - 79, len(two) - 2, len(two) - 1)
            cases += [(f"cut off at {size}", one, two[:size], {_SECOND}) for size in sizes]
            extra = (b"\0", b"\n", b" ", two[-78:], two)
            cases += [(f"with {len(more)} bytes more", one, two + more, {_SECOND}) for more in extra]
            for words, first, last, files in cases:
                _replace(bank / _FIRST, first)
                _replace(bank / _SECOND, last)
                self._judge(f"manifest: {words}", files, "manifests exchanged or cut", bank=bank, good=good)
            _replace(bank / _FIRST, one)
            _replace(bank / _SECOND, foreign_two)
            shutil.copytree(other / "data", bank / "data", dirs_exist_ok=True)
            self._judge(
                "version 2 of another bank with its data",
                {_SECOND},
                "manifests exchanged or cut",
                bank=bank,
                good=answers(other),
            )

    def good_banks(self, count: int) -> None:
        """Random banks without a fault: `verify` finds none, and they read as they were written."""
        for seed in range(count):
            path = self.place / f"good-{seed}"
            with unsynced(), self.tally.expect(f"the good bank of seed {seed}"):
                _, written = make_random_bank(path, Random(seed))
                report = verify(path)
                if report.problems:
                    self.tally.find(f"a false alarm in the good bank of seed {seed}: {report.problems[0]}")
                for name in differences(path, written):
                    self.tally.find(f"the good bank of seed {seed} gives back other {name}")
                self.tally.counts["good banks"] += 1
                self.tally.counts["rows in them"] += sum(len(rows.chunks) for rows in written.shards)
            shutil.rmtree(path)

    def _row_of(self, entry: FileEntry, byte: int) -> int | None:
        """The first row of the record batch that a byte belongs to, None where it belongs to none."""
        if entry.batches is not None:
            for number in range(len(entry.batches.ends)):
                start, end = entry.batches.span(number)
                if start <= byte < end:
                    return number * entry.batches.rows
        return None

    def _exchanged(self, entry: FileEntry, data: bytes, case: str, counted: str) -> None:
        path = self.bank / "data" / entry.name
        good = path.read_bytes()
        path.write_bytes(data)
        self._judge(case, {f"data/{entry.name}"}, counted)
        path.write_bytes(good)

    def _judge(
        self,
        case: str,
        files: set[str],
        counted: str,
        *,
        bank: Path | None = None,
        good: dict[str, object] | None = None,
    ) -> list[Problem]:
        """verify names exactly these files, and no read gives a wrong answer."""
        self.tally.counts[counted] += 1
        bank, problems = bank or self.bank, []
        with self.tally.expect(case):
            problems = list(verify(bank).problems)
            if {problem.file for problem in problems} != files:
                named = sorted({problem.file for problem in problems})
                self.tally.find(f"{case}: verify names {named}, not {sorted(files)}")
            found = answers(bank)
            for name in wrong_answers(found, self.good if good is None else good):
                self.tally.find(f"{case}: {name} gives something else")
            refused = sum(isinstance(value, type) for value in found.values())
            self.tally.counts["reads refused"] += refused
            self.tally.counts["reads that gave the right answer"] += len(found) - refused
        return problems

    @contextmanager
    def _flipped(self, file: str, bit: int) -> Iterator[None]:
        with open(self.bank / file, "r+b", buffering=0) as opened:
            good = os.pread(opened.fileno(), 1, bit // 8)
            os.pwrite(opened.fileno(), bytes([good[0] ^ 1 << bit % 8]), bit // 8)
            yield
            os.pwrite(opened.fileno(), good, bit // 8)

    def _exchange(self, one: Path, two: Path) -> None:
        aside = self.place / "aside"
        one.rename(aside)
        two.rename(one)
        aside.rename(two)

    @contextmanager
    def _copies(self) -> Iterator[tuple[Path, Path]]:
        bank, other = self.place / "copy", self.place / "other"
        shutil.copytree(self.bank, bank)
        make_bank(other, seed=1)
        yield bank, other
        shutil.rmtree(bank)
        shutil.rmtree(other)


def _lengths(entry: FileEntry) -> set[int]:
    """Where a file of this shape may be cut: at its parts' borders and beside them, at its ends, between."""
    borders = {0, 8, entry.bytes // 2, entry.bytes - 8, entry.bytes}
    if entry.batches is not None:
        borders |= {entry.batches.head_bytes, *entry.batches.ends}
    found = {border + near for border in borders for near in (-1, 0, 1)}
    return {size for size in found if 0 <= size < entry.bytes}


def _replace(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
