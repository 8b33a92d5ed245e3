"""Histories in which the bank is also merged with another one, and goes on from what came of it.

A merge takes no model: documents and memories come from the banks, embeddings and index are made of the
texts. What it must be is told from the documents of both, and the memories from their rows.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
from crashes import Death, KilledError
from fake_compile import Documents, compile_bank, documents_of
from histories import Histories, documents
from hypothesis.stateful import precondition, rule
from inspection import current_version
from recorder import Recorder
from sample_bank import temporary_files

from m3build.pipeline.merge import merge_banks
from m3build_formats.bank import list_versions, open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import InputError
from m3build_formats.verify import verify

Prefer = Literal["first", "last"] | None
LATEST_DEATH = 250
"""Calls of a merge of some documents; a death after the last of them is none."""


class MergeHistories(Histories):
    """`Histories` with one more rule. The bank that a history goes on with may be one that was merged;
    readers of the banks before it stay open, though these are gone."""

    @rule(
        found=documents,
        prefer=st.sampled_from([None, "first", "last"]),
        death=st.none() | st.integers(0, LATEST_DEATH),
        adopt=st.booleans(),
    )
    @precondition(lambda self: self._current_is_sound())
    def merge(self, found: Documents, prefer: Prefer, death: int | None, adopt: bool) -> None:
        """The current version and another bank brought together, by a process that may die once."""
        mine = self.held[self.numbers[-1]]
        other, out = self.place / "other", self.place / f"merged-{self.steps['steps']}"
        with BankWriter(other) as writer:
            compile_bank(writer, found, None)
        expected = {**mine, **found} if prefer == "last" else {**found, **mine}
        contested = any(mine.get(name, texts) != texts for name, texts in found.items())
        if (contested and prefer is None) or not any(expected.values()):
            self._refused(other, out, prefer)
        else:
            self._merged(other, out, prefer, death)
            self._judge(other, out, expected)
            if adopt:
                self._adopt(out, expected)
            else:
                shutil.rmtree(out)
        shutil.rmtree(other)

    def _refused(self, other: Path, out: Path, prefer: Prefer) -> None:
        try:
            merge_banks([self.bank, other], out, prefer=prefer)
        except InputError:
            self.steps["merges refused"] += 1
        else:
            raise AssertionError("merged what has no one answer, or no text")
        assert current_version(out) is None
        shutil.rmtree(out, ignore_errors=True)

    def _merged(self, other: Path, out: Path, prefer: Prefer, death: int | None) -> None:
        if death is not None:
            dying = Death(death, after=bool(death % 2))
            with Recorder(out, dying), contextlib.suppress(KilledError):
                merge_banks([self.bank, other], out, prefer=prefer)
            self.steps["dead merges"] += dying.dead
        if current_version(out) is None:
            merge_banks([self.bank, other], out, prefer=prefer)
            assert temporary_files(out) == []
        self.steps["merges"] += 1

    def _judge(self, other: Path, out: Path, expected: Documents) -> None:
        """All documents, each text with a memory that one of the banks has for it, and nothing else."""
        assert list_versions(out) == [1]
        report = verify(out)
        assert (report.problems, report.unreachable) == ((), ())
        memories: dict[str, set[bytes]] = {}
        for bank in (self.bank, other):
            for text, row in _memories(bank):
                memories.setdefault(text, set()).add(row)
        with open_bank(out) as opened:
            assert documents_of(opened) == expected
        for text, row in _memories(out):
            assert row in memories[text], text

    def _adopt(self, out: Path, expected: Documents) -> None:
        """The history goes on with the merged bank; the one before it is gone, and its readers are not."""
        shutil.rmtree(self.bank)
        self.bank = out
        self.held, self.digests = {1: dict(expected)}, {1: read_manifest(out).sha256}
        self.damaged = set()
        self.steps["merged banks gone on with"] += 1


def _memories(bank: Path) -> list[tuple[str, bytes]]:
    with open_bank(bank) as opened:
        return [
            (chunk.text, shard.memories([row]).tobytes())
            for shard in opened.shards
            for row, chunk in enumerate(shard.chunks())
        ]
