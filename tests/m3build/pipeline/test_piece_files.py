"""What a unit's rejects become: a file of its own, however many they are."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from m3build.chunking import Chunker, ChunkOptions
from m3build.corpus import SourceOptions, discover
from m3build.pipeline.cut_units import CutTask, CutUnit, cut_unit
from m3build.pipeline.known_documents import KnownDocuments, list_documents
from m3build.pipeline.piece_files import PieceFiles
from m3build.pipeline.reject_lines import RejectSink, read_rejects
from m3build.pipeline.units import units_of
from m3build.records import Reject


def cut(source: Path, files: PieceFiles) -> CutUnit:
    """The unit that ``source`` makes, cut into ``files``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    listed = files.documents.with_name("known.sqlite")
    list_documents(listed, [])
    options = SourceOptions()
    (unit,) = units_of(discover([str(source)], lambda _: None), options)
    with KnownDocuments(listed) as known:
        return cut_unit(
            CutTask(unit, files),
            options,
            Chunker(tokenizer, ChunkOptions(48)),
            known,
            lambda _: None,
            lambda _: None,
        )


def test_memory_does_not_grow_with_the_rejects_of_a_file(tmp_path: Path) -> None:
    few, many = 10_000, 40_000
    peaks = []
    for lines in (few, few, many):
        source = tmp_path / "bad.jsonl.gz"
        with gzip.open(source, "wt", compresslevel=1) as file:
            file.writelines(f'{{"txet": "word {number}"}}\n' for number in range(lines))
        files = PieceFiles.of(tmp_path, "piece")
        tracemalloc.start()
        found = cut(source, files)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.counts == {"rejects": lines}
        wheres = [reject.where.split(",")[0] for reject in read_rejects(files.rejects)]
        assert wheres == [f"line {number + 1}" for number in range(lines)]
    # Some 300 bytes each as objects. The first round is for what is imported and filled once.
    assert peaks[2] - peaks[1] < 50 * (many - few), peaks


def test_files_are_known_by_their_digests_and_move_together(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "Some words."}\n{"text": 1}\n')
    here, there = PieceFiles.of(tmp_path, "here"), PieceFiles.of(tmp_path, "there")
    found = cut(tmp_path / "corpus.jsonl", here)
    assert found.digests == here.digests()
    assert None not in found.digests
    here.move_to(there)
    assert there.digests() == found.digests
    assert not here.documents.exists()
    assert not here.rejects.exists()
    data = bytearray(there.rejects.read_bytes())
    data[-1] ^= 1
    there.rejects.write_bytes(data)
    assert [a == b for a, b in zip(there.digests(), found.digests, strict=True)] == [True, True, False]
    there.rejects.unlink()
    assert there.digests() == [*found.digests[:2], None]
    with RejectSink(here.rejects) as sink:
        sink.write(Reject("a.txt", "file", "one"))
    there.move_to(here)
    assert here.digests() == [*found.digests[:2], None]
