"""Builds whose reading, cutting and embedding is spread over processes: the same bytes, and what becomes of
workers that end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cheap_builds import cheap_builds
from small_corpus import build, data_files, sentence, write_smaller_corpus

from m3build.config import RunOptions
from m3build.corpus import SourceFile, SourceRange
from m3build.pipeline import pieces, units, vector_stage
from m3build.pipeline.cut_units import CutTask
from m3build.pipeline.piece_files import PieceFiles
from m3build.pipeline.units import Unit
from m3build.workers import Death, WorkerPool
from m3build_formats.bank import read_manifest
from m3build_formats.entries import FileEntry
from m3build_formats.errors import InputError, ResourceError, UsageError

NEW: dict[str, Any] = {"codec": "none", "shard_chunks": 4, "max_rejects": "50%"}
# Every worker reads this when it starts. PLACE is a directory of notes.
HARMFUL = """
import os, signal
from pathlib import Path
from m3build.chunking import cutting
from m3build.embed import lexical

def once(name):
    try:
        Path({place!r}, name).open("x").close()
    except FileExistsError:
        return False
    return True

def end():
    os.kill(os.getpid(), signal.SIGKILL)

cut, embed = cutting.Chunker._cut_group, lexical.LexicalEmbedder.embed

def harmful_cut(self, group):
    for document in group:
        if "poison to cut" in document.text or "once" in document.text and once("cut"):
            end()
    return cut(self, group)

def harmful_embed(self, texts):
    if any("poison to embed" in text or "embed one time" in text and once("embed") for text in texts):
        end()
    return embed(self, texts)

cutting.Chunker._cut_group = harmful_cut
lexical.LexicalEmbedder.embed = harmful_embed
"""


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(units, "UNIT_BYTES", 800)
    monkeypatch.setattr(pieces, "BYTES_A_WORKER", 1)
    monkeypatch.setattr(vector_stage, "ROWS_A_WORKER", 1)
    with cheap_builds():
        yield


@pytest.fixture
def harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers meet documents that end them. Their notes."""
    place = tmp_path / "harm"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HARMFUL.format(place=str(place)), encoding="utf-8")
    monkeypatch.syspath_prepend(str(place))
    return place


def chunks_of(bank: Path) -> list[FileEntry]:
    return [shard.chunks for shard in read_manifest(bank).shards]


def test_any_number_of_workers_makes_the_same_bytes_anew_and_after_edits(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    enter = WorkerPool.__enter__

    def noted(self: Any) -> Any:
        begun.append(self._count)
        return enter(self)

    monkeypatch.setattr(WorkerPool, "__enter__", noted)
    corpus = write_smaller_corpus(tmp_path / "corpus")
    (corpus / "left-out.txt").write_text("not this one", encoding="utf-8")
    options = {**NEW, "exclude": ["left-out*"], "title": True}
    results = [build(corpus, tmp_path / f"{n}", tiny_llama, workers=n, **options) for n in (1, 3)]
    assert begun == [3, 3]
    for number in (0, 5):
        path = corpus / f"{number:02d}.txt"
        path.write_text(path.read_text(encoding="utf-8") + f" {sentence(900 + number)}", encoding="utf-8")
    shutil.move(corpus / "07.txt", corpus / "a.txt")
    results += [build(corpus, tmp_path / f"{n}", tiny_llama, workers=n, **options) for n in (1, 3)]
    assert data_files(tmp_path / "1") == data_files(tmp_path / "3")
    for one, three in (results[:2], results[2:]):
        assert one.manifest.counts == three.manifest.counts
        assert one.manifest.files == three.manifest.files
        assert (one.cut, one.encoded, one.rejects) == (three.cut, three.encoded, three.rejects)
    assert results[0].manifest.counts["rejects"] == 1
    assert results[0].manifest.counts["excluded"] == 1
    assert results[3].cut < results[1].cut


def test_a_worker_that_dies_once_costs_nothing_but_time(tmp_path: Path, tiny_llama: Path, harm: Path) -> None:
    corpus = write_smaller_corpus(tmp_path / "corpus")
    (corpus / "05.txt").write_text("Ends one worker once. And embed one time.", encoding="utf-8")
    build(corpus, tmp_path / "alone", tiny_llama, workers=1, **NEW)
    made = build(corpus, tmp_path / "bank", tiny_llama, workers=2, **NEW)
    assert {path.name for path in harm.iterdir()} >= {"cut", "embed"}
    assert made.manifest.counts["rejects"] == 1
    assert data_files(tmp_path / "bank") == data_files(tmp_path / "alone")
    left = [path.name for path in (tmp_path / "bank" / "build").rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".tmp", ".log"))]


def test_a_build_that_is_refused_while_workers_cut_leaves_neither_them_nor_files(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = []
    begin = WorkerPool._begin

    def noted(self: Any) -> Any:
        worker = begin(self)
        processes.append(worker.process)
        return worker

    monkeypatch.setattr(WorkerPool, "_begin", noted)
    corpus = write_smaller_corpus(tmp_path / "corpus")
    (corpus / "000.jsonl").write_text('{"text": 1}\n' * 5, encoding="utf-8")
    with pytest.raises(InputError, match="more than 2 rejects"):
        build(corpus, tmp_path / "bank", tiny_llama, workers=3, **{**NEW, "max_rejects": "2"})
    assert processes
    assert all(process.returncode is not None for process in processes)
    assert data_files(tmp_path / "bank") == {}


def test_a_document_that_ends_two_workers_is_rejected_alone_and_tried_again_by_the_next_build(
    tmp_path: Path, tiny_llama: Path, harm: Path
) -> None:
    corpus = write_smaller_corpus(tmp_path / "corpus")
    for name in ("03", "05"):
        (corpus / f"{name}.txt").write_text("This is poison to cut.", encoding="utf-8")
    made = build(corpus, tmp_path / "bank", tiny_llama, workers=2, **NEW)
    rejects = [reject for reject in made.rejects if "SIGKILL" in reject.reason]
    assert [(reject.source, reject.where) for reject in rejects] == [
        ("03.txt", "position 0"),
        ("05.txt", "position 0"),
    ]
    assert rejects[0].reason == "two workers ended at it, the last one was ended by SIGKILL"
    assert made.manifest.counts["documents"] == 10
    assert made.manifest.counts["rejects"] == 3
    (harm / "sitecustomize.py").unlink()
    healed = build(corpus, tmp_path / "bank", tiny_llama, workers=2, **NEW)
    assert healed.manifest.counts["documents"] == 12
    build(corpus, tmp_path / "alone", tiny_llama, workers=1, **NEW)
    assert chunks_of(tmp_path / "bank") == chunks_of(tmp_path / "alone")


def test_embedding_that_ends_two_workers_ends_the_build_and_says_so(
    tmp_path: Path, tiny_llama: Path, harm: Path
) -> None:
    corpus = write_smaller_corpus(tmp_path / "corpus")
    (corpus / "05.txt").write_text("This is poison to embed.", encoding="utf-8")
    with pytest.raises(ResourceError, match=r"embedded .*SIGKILL.*--workers 1"):
        build(corpus, tmp_path / "bank", tiny_llama, workers=2, **NEW)


def test_a_unit_that_no_worker_lives_to_read_is_not_tried_for_ever() -> None:
    task = CutTask(
        Unit((SourceRange(SourceFile("/a.txt", "a.txt", 1, "text")),), 1), PieceFiles.of(Path(), "p")
    )
    for _ in range(2):
        task = task.after(Death("was ended by SIGKILL", None))
    assert not task.poison
    with pytest.raises(ResourceError, match=r"read anything of a\.txt.*SIGKILL"):
        task.after(Death("was ended by SIGKILL", None))


def test_a_record_is_given_up_after_two_deaths_of_which_the_first_may_be_of_the_fast_try() -> None:
    unit = Unit((SourceRange(SourceFile("/a.jsonl", "a.jsonl", 1, "jsonl")),), 1)
    task = CutTask(unit, PieceFiles.of(Path(), "p")).after(Death("died", None))
    assert task.is_careful
    first = task.after(Death("died", ("cut", 0, 3)))
    assert first.poison == {("cut", 0, 3): "died"}
    second = first.after(Death("died", ("read", 0, 7)))
    assert set(second.poison) == {("cut", 0, 3)}
    assert set(second.after(Death("died", ("read", 0, 7))).poison) == {("cut", 0, 3), ("read", 0, 7)}


def test_workers_are_counted_from_one(tmp_path: Path, tiny_llama: Path) -> None:
    assert RunOptions().workers is None
    with pytest.raises(UsageError, match="0 workers"):
        build(write_smaller_corpus(tmp_path / "corpus"), tmp_path / "bank", tiny_llama, workers=0, **NEW)
