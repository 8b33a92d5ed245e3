"""What must hold of any way to get to a version: the bytes of a build that never knew another corpus, and no
more work than what is new.

Builds run in this process with ``cheap_builds``. A kill here is an exception that nothing catches, thrown
where a build writes something down; ``process_kills`` kills real processes.
"""

from __future__ import annotations

import importlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import hypothesis.strategies as st
from cheap_builds import CheapEncoder, cheap_builds, count_encoded, directory_of
from corpus_edits import Corpus, Edit, base_corpus, edited, edits, files_of
from small_corpus import build

from m3build.pipeline import pieces, units, vector_stage
from m3build.pipeline.known_documents import KnownDocuments
from m3build.pipeline.ledger import Ledger
from m3build_formats.bank import is_bank, list_versions, open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import DataDirectory
from m3build_formats.manifest import Manifest

NEW: Final = {"codec": "none", "shard_chunks": 4, "reference_tokens": 48, "max_rejects": "50%"}
# Where a build may be killed: before each call of one of these.
DEADLY: Final = (
    (Ledger, "put"),
    (DataDirectory, "add_file"),
    (DataDirectory, "_publish"),
    (KnownDocuments, "cut_many"),
    (CheapEncoder, "_batch"),
    (BankWriter, "commit"),
)


# The package exports a function of this name, which hides the module.
_discover: Final = importlib.import_module("m3build.corpus.discover")


class Killed(BaseException):
    """The build ends here."""


@dataclass(frozen=True)
class Step:
    """Edits, then a build with this budget, order of files and number of workers, killed at this call if that
    comes."""

    edits: tuple[Edit, ...]
    kill_at: int | None
    batch_tokens: int
    order: int
    workers: int


def steps(most: int) -> st.SearchStrategy[list[Step]]:
    """Scripts of up to ``most`` builds."""
    step = st.builds(
        Step,
        st.lists(edits, max_size=4).map(tuple),
        st.one_of(st.none(), st.integers(0, 60)),
        st.sampled_from([1, 64, 300, 16384]),
        st.integers(0, 3),
        # They are slow to begin.
        st.sampled_from([*([1] * 7), 2]),
    )
    return st.lists(step, min_size=1, max_size=most)


class Laws:
    """Tries scripts, each in a directory of its own. ``counts`` says what was done."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._stack = ExitStack()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Laws:
        self._stack.enter_context(cheap_builds())
        self._stack.enter_context(patch.object(units, "UNIT_BYTES", 500))
        self._stack.enter_context(patch.object(pieces, "BYTES_A_WORKER", 1))
        self._stack.enter_context(patch.object(vector_stage, "ROWS_A_WORKER", 1))
        self._place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="m3build-laws-")))
        directory_of(files_of(base_corpus()), self._place / "base")
        build(self._place / "base", self._place / "bank", self._model, workers=1, **NEW)
        count_encoded()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def incremental_is_fresh(self, script: list[Step]) -> None:
        """From the bank of the base corpus on: after the last build the bank is what a fresh one is that is
        given its codec and embedder, and no chunk was encoded that it had.
        """
        with self._a_place() as place:
            shutil.copytree(self._place / "bank", place / "bank")
            corpus, before = base_corpus(), ids_of(place / "bank")
            had = set(before)
            for step in script:
                corpus = self._run(step, corpus, place, before)
                before = ids_of(place / "bank")
                had |= before
            given = {"codec_from": str(place / "bank"), "embedder_from": str(place / "bank")}
            self._compare(place, corpus, {**NEW, **given})

    def killed_is_fresh(self, script: list[Step], codec: str) -> None:
        """From nothing on, every build but the last killed: the bank is what one build makes."""
        with self._a_place() as place:
            corpus = base_corpus()
            for step in script:
                kill_at = 5 if step.kill_at is None else step.kill_at
                corpus = self._run(replace(step, kill_at=kill_at), corpus, place, None, codec=codec)
                if is_bank(place / "bank") and list_versions(place / "bank"):
                    # It was done before it could be killed; codec and embedder are those of that corpus.
                    break
            else:
                self._build(script[-1], place, codec=codec)
            self._compare(place, corpus, {**NEW, "codec": codec})

    @contextmanager
    def _a_place(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._place) as place:
            yield Path(place)

    def _run(
        self, step: Step, corpus: Corpus, place: Path, before: set[bytes] | None, **options: Any
    ) -> Corpus:
        for edit in step.edits:
            corpus = edited(corpus, edit)
            self.counts[edit.kind] += 1
        directory_of(files_of(corpus), place / "corpus")
        killed = False
        count_encoded()
        if step.kill_at is not None:
            try:
                with killed_at(step.kill_at):
                    self._build(step, place, **options)
            except Killed:
                killed = True
                self.counts["kills"] += 1
        if before is not None:
            if killed or step.kill_at is None:
                self._build(step, place, **options)
            new = ids_of(place / "bank") - before
            encoded = count_encoded()
            # A shard that was not finished when the build was killed is begun again.
            assert encoded == len(new) or (killed and encoded >= len(new)), (encoded, len(new))
            self.counts["chunks encoded"] += encoded
        return corpus

    def _build(self, step: Step, place: Path, **options: Any) -> None:
        self.counts["builds"] += 1
        self.counts["builds with workers"] += step.workers > 1
        with walked_in_order(step.order):
            build(
                place / "corpus",
                place / "bank",
                self._model,
                allow_shrink=True,
                batch_tokens=step.batch_tokens,
                workers=step.workers,
                **{**NEW, **options},
            )

    def _compare(self, place: Path, corpus: Corpus, options: dict[str, Any]) -> None:
        elsewhere = directory_of(files_of(corpus), place / "the same elsewhere")
        fresh = build(elsewhere, place / "fresh", self._model, workers=1, **options).manifest
        self.counts["scripts"] += 1
        same_data(read_manifest(place / "bank"), fresh, place / "bank", place / "fresh")


def same_data(one: Manifest, other: Manifest, one_bank: Path, other_bank: Path) -> None:
    """Asserts that two versions have the same data files, by name and by byte, and the same counts."""
    assert one.shards == other.shards
    assert one.files == other.files
    assert one.counts == other.counts
    assert one.code_key == other.code_key
    for name in one.all_files():
        assert (one_bank / "data" / name).read_bytes() == (other_bank / "data" / name).read_bytes()


def ids_of(bank: Path) -> set[bytes]:
    """Ids of all references of the current version."""
    with open_bank(bank) as files:
        return {bytes(chunk.id) for shard in files.shards for chunk in shard.chunks()}


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Within, the ``number``-th of the deadly calls raises instead."""
    left = number

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return original(*given, **named)

        return call

    with ExitStack() as stack:
        for owner, name in DEADLY:
            stack.enter_context(patch.object(owner, name, deadly(getattr(owner, name))))
        yield


@contextmanager
def walked_in_order(seed: int) -> Iterator[None]:
    """Within, directories list their files in another order."""
    original = _discover.walk

    def walk(top: str) -> Iterator[Any]:
        found = list(original(top))
        random.Random(seed).shuffle(found)
        return iter(found)

    with patch.object(_discover, "walk", walk):
        yield
