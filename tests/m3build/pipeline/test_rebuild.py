"""What a rebuild costs, by counting: files read, documents cut, references encoded."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cheap_builds import cheap_builds, count_encoded
from small_corpus import build, data_files, sentence, write_smaller_corpus

from m3build.bank import open_bank
from m3build.pipeline import build as build_module
from m3build.pipeline import cut_units, file_hashes, unchanged, units
from m3build.pipeline.version_facts import is_same
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.errors import ResourceError
from m3build_formats.rollback import rollback
from m3build_formats.store_evaluation import store_evaluation

# Bytes of a unit of work: a file or two, so that a corpus of kilobytes has many.
UNIT = 800
NEW = {"codec": "none", "shard_chunks": 4, "max_rejects": "50%"}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(units, "UNIT_BYTES", UNIT)
    with cheap_builds():
        yield
        count_encoded()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A corpus with old times and its bank, to be copied."""
    place = tmp_path_factory.mktemp("built")
    corpus = write_smaller_corpus(place / "corpus")
    with cheap_builds(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(units, "UNIT_BYTES", UNIT)
        build(corpus, place / "bank", tiny_llama, **NEW)
    return place


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    count_encoded()
    return tmp_path / "copy"


def again(place: Path, model: Path, **options: Any) -> Any:
    return build(place / "corpus", place / "bank", model, **{**NEW, **options})


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what was written just now had been written long ago."""
    monkeypatch.setattr(file_hashes, "_GRAIN_NS", -(10**18))


def read_of(result: Any) -> tuple[int, int]:
    """Files looked at and read, as the note of a build with nothing to do has them."""
    note = next(note for note in result.notes if note.startswith("nothing changed"))
    looked, read = (int(word) for word in note.replace(",", "").split() if word.isdigit())
    return looked, read


def test_unchanged_sources_are_not_read_and_no_model_is_loaded(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    first = again(place, tiny_llama)
    looked, read = read_of(first)
    # The copy has other times; sources are 13 files, the model's directory has some too.
    assert 0 < read <= looked
    monkeypatch.setattr(build_module, "_load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(build_module, "CorpusReading", lambda *_: pytest.fail("the corpus was read"))
    second = again(place, tiny_llama)
    assert read_of(second) == (looked, 0)
    assert not second.changed
    assert second.encoded == second.cut == 0
    assert second.reused == second.manifest.rows
    assert [r.source for r in second.rejects] == ["bad.jsonl"]
    assert read_of(again(place, tiny_llama, rehash=True)) == (looked, looked)
    for path in (place / "corpus").iterdir():
        os.utime(path, (1e9, 1e9))
    assert read_of(again(place, tiny_llama))[1] == 13
    assert list_versions(place / "bank") == [1]


def test_a_change_that_keeps_size_and_time_of_modification_is_seen(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    again(place, tiny_llama)
    path = place / "corpus" / "05.txt"
    before = path.stat()
    edit(path, "number 201.", "number 102.")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert again(place, tiny_llama).version == 2


def test_a_file_written_just_before_it_was_hashed_is_read_again(place: Path, tiny_llama: Path) -> None:
    (place / "corpus" / "05.txt").write_text("Written just now.", encoding="utf-8")
    again(place, tiny_llama)
    assert read_of(again(place, tiny_llama))[1] >= 1


def test_rehash_finds_what_the_table_of_hashes_has_wrong(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    again(place, tiny_llama)
    path = place / "corpus" / "05.txt"
    edit(path, "number 201.", "number nine.")
    found = path.stat()
    with closing(sqlite3.connect(place / "bank" / "build" / "hashes.sqlite")) as table:
        table.execute(
            "UPDATE hashes SET bytes = ?, modified = ?, changed = ? WHERE path = ?",
            (found.st_size, found.st_mtime_ns, found.st_ctime_ns, file_hashes._key(str(path))),
        )
        table.commit()
    assert not again(place, tiny_llama).changed
    assert again(place, tiny_llama, rehash=True).changed


def test_an_evaluation_and_a_rollback_to_the_same_leave_nothing_to_do(place: Path, tiny_llama: Path) -> None:
    again(place, tiny_llama)
    store_evaluation(place / "bank", read_manifest(place / "bank"), {"loss": 1})
    assert read_of(again(place, tiny_llama))
    (place / "corpus" / "new.txt").write_text(sentence(7000), encoding="utf-8")
    assert again(place, tiny_llama).version == 3
    rollback(place / "bank", 2)
    assert again(place, tiny_llama).version == 5
    (place / "corpus" / "new.txt").unlink()
    rollback(place / "bank", 1)
    again(place, tiny_llama)
    assert read_of(again(place, tiny_llama))


@pytest.mark.parametrize(
    "change",
    [{"max_rejects": "40%"}, {"exclude": ("05.txt",)}],
    ids=["another limit of rejects", "a document to leave out"],
)
def test_another_option_runs_the_build(change: dict[str, Any], place: Path, tiny_llama: Path) -> None:
    again(place, tiny_llama)
    result = again(place, tiny_llama, **change)
    assert not any(note.startswith("nothing changed") for note in result.notes)


def test_one_edited_document_cuts_one_and_encodes_its_changed_chunks(place: Path, tiny_llama: Path) -> None:
    edit(place / "corpus" / "05.txt", "number 201.", "number nine.")
    result = again(place, tiny_llama)
    assert result.cut == 1
    assert 1 <= result.encoded <= 2
    assert count_encoded() == result.encoded


def test_a_version_from_before_continuations_is_the_same_as_one_that_says_no(place: Path) -> None:
    manifest = read_manifest(place / "bank")
    contents = manifest.contents
    assert contents.memory["continuations"] is False
    before = {key: value for key, value in contents.memory.items() if key != "continuations"}
    assert is_same(replace(manifest, memory=before), contents)
    assert not is_same(replace(manifest, memory={**before, "continuations": True}), contents)


def test_moved_renamed_and_copied_files_encode_nothing(place: Path, tiny_llama: Path) -> None:
    corpus = place / "corpus"
    (corpus / "05.txt").rename(corpus / "zz.txt")
    (corpus / "below").mkdir()
    (corpus / "07.txt").rename(corpus / "below" / "07.txt")
    shutil.copy(corpus / "09.txt", corpus / "00-again.txt")
    result = again(place, tiny_llama)
    assert result.changed
    assert (result.encoded, count_encoded()) == (0, 0)
    # A copy of a document whose unit stays is cut again; the moved ones are known.
    assert result.cut <= 1


def test_a_new_file_leaves_the_units_of_the_others_as_they_are(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = cut_units.read_range
    monkeypatch.setattr(cut_units, "read_range", lambda r, o: opened.append(r.file.name) or original(r, o))
    (place / "corpus" / "00-first.txt").write_text(sentence(8000), encoding="utf-8")
    result = again(place, tiny_llama)
    assert (result.cut, result.encoded) == (1, 1)
    assert "00-first.txt" in opened
    assert len(opened) <= 4


def stop_at_shard(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    original = build_module.MemoryWriter.write
    calls = 0

    def stop(self: Any, shard: Any, *others: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > number:
            monkeypatch.setattr(build_module.MemoryWriter, "write", original)
            raise KeyboardInterrupt
        return original(self, shard, *others)

    monkeypatch.setattr(build_module.MemoryWriter, "write", stop)


def test_what_a_stopped_build_encoded_is_used_though_a_source_changed_meanwhile(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_smaller_corpus(tmp_path / "corpus")
    stop_at_shard(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "bank", tiny_llama, **NEW)
    done = count_encoded()
    edit(corpus / "00.txt", "number 3.", "number three.")
    result = build(corpus, tmp_path / "bank", tiny_llama, **NEW)
    assert result.cut == 1
    fresh = build(corpus, tmp_path / "fresh", tiny_llama, **NEW)
    # Of the shards that were finished only the changed chunks go through the model again.
    assert result.reused > 10
    assert result.encoded + result.reused == fresh.encoded
    assert done
    assert fresh.manifest.shards == result.manifest.shards
    assert fresh.encoded - result.encoded >= result.reused - 1


def test_a_damaged_piece_is_made_again(place: Path, tiny_llama: Path) -> None:
    for path in (place / "bank" / "build" / "pieces").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (place / "corpus" / "new.txt").write_text(sentence(7000), encoding="utf-8")
    result = again(place, tiny_llama)
    assert result.cut == 13
    fresh = build(place / "corpus", place / "fresh", tiny_llama, embedder_from=str(place / "bank"), **NEW)
    assert fresh.manifest.shards == result.manifest.shards


@pytest.mark.parametrize("name", ["finished.json", "hashes.sqlite"])
@pytest.mark.parametrize("how", ["gone", "garbled"])
def test_damaged_records_cost_work_and_nothing_else(
    name: str, how: str, place: Path, tiny_llama: Path
) -> None:
    path = place / "bank" / "build" / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(
            path.read_bytes()[:-20] + b"x" * 20 if name == "finished.json" else b"no database" * 99
        )
    result = again(place, tiny_llama)
    assert not result.changed
    assert result.encoded == result.cut == 0


def test_a_bank_that_is_too_large_for_a_manifest_is_refused_before_anything_is_encoded(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3build.pipeline.manifest_limit.MAX_MANIFEST_BYTES", 40)
    (place / "corpus" / "new.txt").write_text(sentence(7000), encoding="utf-8")
    with pytest.raises(ResourceError, match=r"divide the corpus"):
        again(place, tiny_llama)
    assert count_encoded() == 0
    assert list_versions(place / "bank") == [1]


def test_a_bank_inside_its_own_sources_is_not_compiled(tmp_path: Path, tiny_llama: Path) -> None:
    corpus = write_smaller_corpus(tmp_path / "corpus")
    first = build(corpus, corpus / "bank", tiny_llama, **NEW)
    assert not build(corpus, corpus / "bank", tiny_llama, **NEW).changed
    assert len(list_versions(corpus / "bank")) == 1
    assert first.manifest.counts["documents"] > 3


def test_lines_that_are_added_after_a_file_was_found_are_in_the_next_build(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    original, load = build_module.source_options, build_module._load
    # So that the file is cut into ranges, up to the size that it had when it was found.
    monkeypatch.setattr(build_module, "source_options", lambda s: replace(original(s), range_bytes=200))
    lines = [json.dumps({"text": sentence(number)}) + "\n" for number in range(8000, 8030)]
    (place / "corpus" / "log.jsonl").write_text("".join(lines[:20]), encoding="utf-8")

    def while_loading(*given: Any) -> Any:
        with (place / "corpus" / "log.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(lines[20:])
        return load(*given)

    monkeypatch.setattr(build_module, "_load", while_loading)
    first = again(place, tiny_llama)
    assert any("log.jsonl changed while it was read" in note for note in first.notes)
    monkeypatch.setattr(build_module, "_load", load)
    second = again(place, tiny_llama)
    assert second.manifest.counts["documents"] == first.manifest.counts["documents"] + 10
    assert not again(place, tiny_llama).changed


def test_a_file_that_changes_while_it_is_read_is_not_taken_for_what_it_was(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cut_units.read_range
    target = place / "corpus" / "05.txt"
    target.write_text("The first words.", encoding="utf-8")

    def change_first(part: Any, options: Any) -> Any:
        if part.file.name == "05.txt":
            target.write_text("The second words.", encoding="utf-8")
        return original(part, options)

    monkeypatch.setattr(cut_units, "read_range", change_first)
    result = again(place, tiny_llama)
    assert any("05.txt changed while it was read" in note for note in result.notes)
    monkeypatch.setattr(cut_units, "read_range", original)
    target.write_text("The first words.", encoding="utf-8")
    assert again(place, tiny_llama).changed
    with open_bank(place / "bank") as bank:
        texts = {chunk.text for shard in bank.files.shards for chunk in shard.chunks()}
    assert "The first words." in texts
    assert "The second words." not in texts


def test_a_build_leaves_only_what_the_next_one_can_use(place: Path, tiny_llama: Path) -> None:
    left = {path.name for path in (place / "bank" / "build").iterdir()}
    assert left == {"pieces", "ledger", "hashes.sqlite", unchanged.RECORD}
    before = len(list((place / "bank" / "build" / "pieces").iterdir()))
    for path in list((place / "corpus").iterdir())[2:]:
        path.unlink()
    again(place, tiny_llama, allow_shrink=True)
    pieces_left = list((place / "bank" / "build" / "pieces").iterdir())
    assert len(pieces_left) < before
    assert len(pieces_left) == 2 * len(list((place / "bank" / "build" / "ledger").iterdir())) + sum(
        "rejects" in path.name for path in pieces_left
    )


def test_a_copy_without_its_scratch_is_built_upon_all_the_same(place: Path, tiny_llama: Path) -> None:
    shutil.rmtree(place / "bank" / "build")
    edit(place / "corpus" / "05.txt", "number 201.", "number nine.")
    result = again(place, tiny_llama)
    assert 1 <= result.encoded <= 2
    assert data_files(place / "bank")


def test_damage_that_changes_no_times_is_no_reason_to_do_nothing(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    again(place, tiny_llama)
    stamps: dict[str, Any] = {}

    def stamp(path: str) -> Any:
        if path not in stamps:
            stamps[path] = original(path)
        return stamps[path]

    original = file_hashes._stamp
    monkeypatch.setattr(file_hashes, "_stamp", stamp)
    assert not again(place, tiny_llama).repaired
    memories = read_manifest(place / "bank").shards[0].memories
    assert memories is not None
    file = place / "bank" / "data" / memories.name
    sound = file.read_bytes()
    file.chmod(0o644)
    # A disk that gives other bytes than were written changes no stamp.
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert again(place, tiny_llama).repaired
    assert file.read_bytes() == sound
