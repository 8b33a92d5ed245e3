from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_bank import (
    CODES,
    HEADS,
    POSITIONS,
    SLOTS,
    VECTOR,
    add_version,
    bank_files,
    build_bank,
    chunk_rows,
    contents,
    document_rows,
    embedding_array,
    memory_array,
    write_shard,
)

from m3build_formats.arrays_file import write_arrays
from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.cold_rows import cold_rows, empty_rows
from m3build_formats.commit import BankWriter
from m3build_formats.errors import CorruptError, UsageError
from m3build_formats.manifest import VersionContents
from m3build_formats.shard_tables import ChunkRow, DocumentRow, write_memories
from m3build_formats.verify import Level, verify


def replace_bytes(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    replace_bytes(path, bytes(data))


def everything_read(bank: Path) -> list[object]:
    """All that a bank can be asked for, in a form that compares."""
    with open_bank(bank) as opened:
        found: list[object] = [opened.manifest, opened.evaluation(), list(opened.rejects())]
        for shard in opened.shards:
            found.append(list(shard.chunks()))
            found.append(list(shard.document_rows()))
            found.append(shard.memories(range(shard.rows)).tobytes())
            found.append(b"".join(block.tobytes() for block in shard.embeddings()))
            found.append(bytes(shard.index_bytes()))
        arrays = opened.codec_arrays() | opened.embedder_arrays()
        found.extend((name, array.shape, array.tobytes()) for name, array in arrays.items())
    return found


def partly_cold(bank: Path, cold: int) -> None:
    """A version whose first shard has a cold row 3, whose second has no memories, and that says ``cold``."""
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        first, second = base.shards
        with open_bank(bank) as opened:
            rows = opened.shards[0].memories(range(first.rows))
        rows[3] = empty_rows(1, base.row_bytes, base.row_codes_bytes)
        memories = write_memories(writer, [rows], base.row_bytes)
        shards = (replace(first, memories=memories), replace(second, memories=None))
        writer.commit(replace(base.contents, shards=shards, counts={**base.counts, "cold": cold}), base)


def test_cold_rows_are_counted(tmp_path: Path) -> None:
    build_bank(tmp_path, (40, 7))
    partly_cold(tmp_path, 8)
    assert verify(tmp_path).problems == ()
    with open_bank(tmp_path) as opened:
        shard = opened.shards[0]
        assert cold_rows(shard.memories([2, 3, 4]), opened.manifest.row_codes_bytes).tolist() == [
            False,
            True,
            False,
        ]
    partly_cold(tmp_path, 9)
    [problem] = verify(tmp_path).problems
    assert problem.file == "versions/00000003.json"
    assert (problem.promise, problem.message) == (
        "counts.cold are the rows without a memory",
        "says 9, and 8 have none",
    )


def test_a_cold_row_with_codes_breaks_the_format(tmp_path: Path) -> None:
    build_bank(tmp_path, (40, 7))
    with BankWriter(tmp_path) as writer:
        base = writer.current()
        assert base is not None
        with open_bank(tmp_path) as opened:
            rows = opened.shards[0].memories(range(40))
        rows[3, base.row_codes_bytes :] = 255
        shards = (
            replace(base.shards[0], memories=write_memories(writer, [rows], base.row_bytes)),
            base.shards[1],
        )
        writer.commit(replace(base.contents, shards=shards, counts={**base.counts, "cold": 1}), base)
    assert [(problem.row, problem.promise) for problem in verify(tmp_path).problems] == [
        (3, "unused slots are zero")
    ]


@pytest.mark.parametrize("level", ["quick", "default"])
@pytest.mark.parametrize("rows", [(40, 7), (1,), (), (0,), (600, 0, 3)])
def test_a_good_bank_has_no_problem(tmp_path: Path, level: Level, rows: Sequence[int]) -> None:
    build_bank(tmp_path, rows)
    add_version(tmp_path)
    report = verify(tmp_path, level)
    assert report.problems == ()
    assert report.unreachable == ()
    assert report.ok
    files = [*(tmp_path / "data").iterdir()]
    assert report.files_checked == 2 + len(files)
    assert report.bytes_checked == (0 if level == "quick" else sum(file.stat().st_size for file in files))


def test_flips_in_every_data_file_are_found_and_never_read(bank: Path) -> None:
    """Each flip is found by verify; a read either fails or gives what it gave before."""
    good = everything_read(bank)
    random = np.random.default_rng(3)
    for file in sorted((bank / "data").iterdir()):
        data = file.read_bytes()
        for bit in random.choice(8 * len(data), 12, replace=False).tolist():
            flip(file, bit)
            report = verify(bank)
            assert [problem.file for problem in report.problems] == [f"data/{file.name}"], (file, bit)
            with contextlib.suppress(CorruptError):
                assert everything_read(bank) == good
            replace_bytes(file, data)
    assert verify(bank).ok


def test_the_bad_batch_and_its_rows_are_named(tmp_path: Path) -> None:
    build_bank(tmp_path, (1100,))
    entry = read_manifest(tmp_path).shards[0].chunks
    assert entry.batches is not None
    flip(tmp_path / "data" / entry.name, 8 * (entry.batches.ends[0] + 300))
    (problem,) = verify(tmp_path).problems
    assert problem.row == 512
    assert "rows 512 to 1023" in problem.message
    assert str(problem).startswith(f"data/{entry.name} row 512: bytes as hashed in the name: ")
    with open_bank(tmp_path) as opened:
        assert opened.shards[0].chunk(511).text.startswith("chunk 511")
        with pytest.raises(CorruptError, match="rows 512 to 1023"):
            opened.shards[0].chunk(512)


def test_damage_in_the_footer_is_found_though_reads_never_use_it(bank: Path) -> None:
    entry = read_manifest(bank).shards[0].chunks
    flip(bank / "data" / entry.name, 8 * (entry.bytes - 20))
    (problem,) = verify(bank).problems
    assert "its record batches are whole" in problem.message
    with open_bank(bank) as opened:
        assert len(list(opened.shards[0].chunks())) == 40


@pytest.mark.parametrize("level", ["quick", "default"])
@pytest.mark.parametrize("damage", ["remove", "truncate", "extend", "empty", "link", "directory", "fifo"])
def test_a_file_missing_or_of_another_size_or_type_is_found_by_either_level(
    bank: Path, level: Level, damage: str
) -> None:
    name = read_manifest(bank).shards[1].embeddings.name
    file = bank / "data" / name
    data = file.read_bytes()
    file.unlink()
    if damage == "link":
        (bank / "elsewhere").write_bytes(data)
        file.symlink_to(bank / "elsewhere")
    elif damage == "directory":
        file.mkdir()
    elif damage == "fifo":
        os.mkfifo(file)
    elif damage != "remove":
        file.write_bytes({"truncate": data[:-1], "extend": data + b"\0", "empty": b""}[damage])
    report = verify(bank, level)
    assert [problem.file for problem in report.problems] == [f"data/{name}"]
    with pytest.raises(CorruptError, match=name):
        open_bank(bank)


def test_swapped_files_are_found(bank: Path) -> None:
    one, two = (read_manifest(bank).shards[n].index.name for n in (0, 1))
    (bank / "data" / one).rename(bank / "data" / "x")
    (bank / "data" / two).rename(bank / "data" / one)
    (bank / "data" / "x").rename(bank / "data" / two)
    assert {problem.file for problem in verify(bank).problems} == {f"data/{one}", f"data/{two}"}
    with open_bank(bank) as opened, pytest.raises(CorruptError, match="SHA-256"):
        opened.shards[0].index_bytes()


def test_quick_reads_no_data(bank: Path) -> None:
    file = bank / "data" / read_manifest(bank).shards[0].index.name
    flip(file, 100)
    assert verify(bank, "quick").ok
    assert not verify(bank).ok


def test_a_damaged_manifest_is_named_and_the_others_still_checked(bank: Path) -> None:
    add_version(bank)
    name = read_manifest(bank).shards[0].index.name
    flip(bank / "data" / name, 9)
    flip(bank / "versions/00000002.json", 999)
    problems = verify(bank).problems
    assert [problem.file for problem in problems] == ["versions/00000002.json", f"data/{name}"]


def test_one_version_is_checked_alone(bank: Path) -> None:
    add_version(bank)
    flip(bank / "versions/00000001.json", 999)
    assert verify(bank, version=2).ok
    assert not verify(bank, version=1).ok
    with pytest.raises(UsageError, match="no version 3"):
        verify(bank, version=3)


def test_a_version_whose_base_was_exchanged_is_named(bank: Path, tmp_path: Path) -> None:
    add_version(bank)
    build_bank(tmp_path / "other", (3,))
    shutil.copytree(tmp_path / "other" / "data", bank / "data", dirs_exist_ok=True)
    replace_bytes(bank / "versions/00000001.json", (tmp_path / "other/versions/00000001.json").read_bytes())
    (problem,) = verify(bank).problems
    assert problem.promise == "a version names what it was made from"


def test_unreachable_files_are_listed_and_no_fault(bank: Path) -> None:
    with BankWriter(bank) as writer:
        orphan = writer.add_file("eval", b"[9]")
    (bank / "data" / "notes.txt").touch()
    (bank / "versions" / ".tmp-1-a").touch()
    (bank / "README").touch()
    (bank / "build" / "work").touch()
    report = verify(bank)
    assert report.ok
    assert report.unreachable == ("README", f"data/{orphan.name}", "data/notes.txt", "versions/.tmp-1-a")


def test_what_is_no_bank_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        verify(tmp_path)
    (tmp_path / "versions").mkdir()
    with pytest.raises(UsageError, match="no version yet"):
        verify(tmp_path)
    with pytest.raises(UsageError, match="level"):
        verify(tmp_path, "deep")  # type: ignore[arg-type]


def test_a_missing_or_linked_data_directory_is_a_problem_not_a_crash(bank: Path) -> None:
    (bank / "data").rename(bank.parent / "moved")
    assert [problem.file for problem in verify(bank).problems] == ["data"]
    (bank / "data").symlink_to(bank.parent / "moved")
    assert [problem.file for problem in verify(bank).problems] == ["data"]


def test_the_report_has_a_json_form(bank: Path) -> None:
    (bank / "data" / read_manifest(bank).shards[0].index.name).unlink()
    value = verify(bank).to_json()
    assert value["ok"] is False
    assert set(value["problems"][0]) == {"file", "row", "promise", "message"}


# Rules that rows must keep, each broken by a writer that hashes its wrong rows correctly.


def spoilt(
    path: Path,
    *,
    chunks: Sequence[ChunkRow] | None = None,
    documents: Sequence[DocumentRow] | None = None,
    memories: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
    edit: Callable[[BankWriter, VersionContents], VersionContents] = lambda writer, made: made,
) -> list[tuple[str, int | None]]:
    """(promise, row) of every problem of a bank with these tables."""
    chunks = chunk_rows(5) if chunks is None else chunks
    with BankWriter(path) as writer:
        shard = write_shard(
            writer,
            chunks,
            documents=document_rows(chunks) if documents is None else documents,
            memories=memory_array(chunk_rows(5)) if memories is None else memories,
            embeddings=embeddings,
        )
        writer.commit(edit(writer, contents([shard], bank_files(writer))), None)
    return [(problem.promise, problem.row) for problem in verify(path).problems]


def with_row(row: int, **changes: object) -> list[ChunkRow]:
    rows = chunk_rows(5)
    rows[row] = replace(rows[row], **changes)  # type: ignore[arg-type]
    return rows


def test_an_id_that_is_not_the_hash_of_its_text_is_found(tmp_path: Path) -> None:
    assert spoilt(tmp_path, chunks=with_row(2, text=chunk_rows(5)[2].text + "!")) == [
        ("an id is the SHA-256 of its text", 2)
    ]


def test_a_text_that_is_there_twice_is_found(tmp_path: Path) -> None:
    rows = chunk_rows(5)
    rows[4] = replace(rows[2], occurrences=rows[4].occurrences)
    assert ("one row for each text of a shard", 4) in spoilt(tmp_path, chunks=rows)


@pytest.mark.parametrize(
    "token_ends",
    [(3, 2, 5, 9, 12), (3, 8, 13, 18, 500), (), tuple(range(1, 30)) * 5],
    ids=["falling", "beyond", "none", "many"],
)
def test_tokens_out_of_order_or_place_are_found(tmp_path: Path, token_ends: tuple[int, ...]) -> None:
    found = spoilt(tmp_path, chunks=with_row(2, token_ends=token_ends))
    assert ("tokens lie in order within the text", 2) in found


def occurrence_changed(**changes: object) -> list[ChunkRow]:
    first, *rest = chunk_rows(5)[3].occurrences
    return with_row(3, occurrences=(replace(first, **changes), *rest))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"document": "other"}, {"end": 10**7}, {"start": 150, "end": 150}, {"row": 2}, {"row": 2**32 - 1}],
    ids=str,
)
def test_an_occurrence_outside_its_document_is_found(tmp_path: Path, changes: dict[str, object]) -> None:
    rows = occurrence_changed(**changes)
    found = spoilt(tmp_path, chunks=rows, documents=document_rows(chunk_rows(5)))
    assert ("occurrences lie within their documents", 3) in found


def test_occurrences_in_another_order_are_found(tmp_path: Path) -> None:
    rows = chunk_rows(5)
    back = with_row(3, occurrences=rows[3].occurrences[::-1])
    assert ("occurrences lie within their documents", 3) in spoilt(tmp_path / "a", chunks=back)
    exchanged = [rows[0], rows[2], rows[1], *rows[3:]]
    memories = memory_array(exchanged)
    assert spoilt(tmp_path / "b", chunks=exchanged, memories=memories) == [
        ("rows in order of first occurrence", 2)
    ]


def test_a_chunk_without_an_occurrence_is_found(tmp_path: Path) -> None:
    assert ("occurrences lie within their documents", 1) in spoilt(
        tmp_path, chunks=with_row(1, occurrences=())
    )


def test_a_document_that_counts_its_chunks_wrongly_is_found(tmp_path: Path) -> None:
    first, second = document_rows(chunk_rows(5))
    assert spoilt(tmp_path, documents=[first, replace(second, chunks=9)]) == [
        ("documents count their chunks", 1)
    ]


@pytest.mark.parametrize("metadata", ["", "[]", '{"b":1,"a":2}', '{"a": 1}', '{"a":NaN}', "{" * 50])
def test_metadata_in_another_form_is_found(tmp_path: Path, metadata: str) -> None:
    first, second = document_rows(chunk_rows(5))
    found = spoilt(tmp_path, documents=[first, replace(second, metadata=metadata)])
    assert found == [("metadata is a canonical JSON object", 1)]


@pytest.mark.parametrize(
    "positions", [(5, 4, 6), (4, 4, 6), (4, 5, 200), (255, 4, 5), (254, 255, 255)], ids=str
)
def test_positions_that_do_not_ascend_within_the_tokens_are_found(
    tmp_path: Path, positions: tuple[int, ...]
) -> None:
    memories = memory_array(chunk_rows(5))
    memories[3, CODES + SLOTS : CODES + 2 * SLOTS] = positions
    found = spoilt(tmp_path, memories=memories)
    assert ("kept positions ascend within the tokens", 3) in found
    assert {row for _, row in found} == {3}


@pytest.mark.parametrize("part", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (0, 1), (1, 0)])
def test_an_unused_slot_that_is_not_zero_is_found_in_any_head(
    tmp_path: Path, layer: int, head: int, part: int
) -> None:
    memories = memory_array(chunk_rows(5))
    flat = head + sum(map(len, HEADS[:layer]))
    memories[2, CODES + (flat + 1) * SLOTS - 1] = 255
    start = 2 * SLOTS * VECTOR * sum(map(len, HEADS[:layer]))
    heads = len(HEADS[layer])
    for each in (0, 1):
        at = start + ((each * heads + head) * SLOTS + SLOTS - 1) * VECTOR
        memories[2, at : at + VECTOR] = 0
    assert spoilt(tmp_path / "good", memories=memories) == []
    at = start + ((part * heads + head) * SLOTS + SLOTS - 1) * VECTOR
    memories[2, at + 1] = 1
    assert spoilt(tmp_path / "bad", memories=memories) == [("unused slots are zero", 2)]
    assert memories.shape[1] == CODES + POSITIONS


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_found(tmp_path: Path, value: float) -> None:
    embeddings = embedding_array(5)
    embeddings[4, 2] = value
    assert spoilt(tmp_path, embeddings=embeddings) == [("embeddings are finite", 4)]


def test_an_index_of_another_type_is_found_and_never_handed_out(tmp_path: Path) -> None:
    def edit(writer: BankWriter, made: VersionContents) -> VersionContents:
        index = writer.add_file("index", b"IxHe" + bytes(60))
        return replace(made, shards=(replace(made.shards[0], index=index),))

    assert spoilt(tmp_path, edit=edit) == [("the file parses as its kind", None)]
    with open_bank(tmp_path) as opened, pytest.raises(CorruptError, match="IxHe"):
        opened.shards[0].index_bytes()


@pytest.mark.parametrize("kind", ["codec", "rejects", "eval"])
def test_a_file_that_does_not_parse_as_its_kind_is_found(tmp_path: Path, kind: str) -> None:
    def edit(writer: BankWriter, made: VersionContents) -> VersionContents:
        if kind == "codec":
            entry = write_arrays(writer, "codec", {"a": np.zeros(3)})
            assert entry.batches is not None
            junk = writer.add_file("codec", bytes(entry.bytes))
            entry = replace(junk, rows=1, batches=entry.batches)
        else:
            entry = writer.add_file(kind, b"junk")
        return replace(made, files=replace(made.files, **{kind: entry}))

    assert spoilt(tmp_path, edit=edit) == [("the file parses as its kind", None)]


def test_only_the_first_problems_of_a_file_are_listed(tmp_path: Path) -> None:
    rows = [replace(row, id=bytes([n]) * 32) for n, row in enumerate(chunk_rows(60))]
    found = spoilt(tmp_path, chunks=rows, memories=memory_array(rows))
    assert len(found) == 21
    assert found[-1] == ("and more", None)
