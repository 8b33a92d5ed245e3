from __future__ import annotations

import os
import random
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus_bank import Doc, chunk_id, commit_corpus, corpus_shard
from sample_bank import add_version, bank_files, build_bank, contents

from m3build_formats import diff_rows
from m3build_formats.bank import manifest_name, read_manifest
from m3build_formats.bank_name import split_version
from m3build_formats.commit import BankWriter
from m3build_formats.diff import diff_versions
from m3build_formats.diff_report import ChunkChanges, DocumentChanges, Listed, Setting
from m3build_formats.errors import BusyError, CorruptError, UsageError
from m3build_formats.gc import collect
from m3build_formats.rollback import rollback
from m3build_formats.sorted_ids import ID, is_in, keep, mark, sorted_set

Shards = Sequence[Sequence[Doc]]


def two(path: Path, before: Shards, after: Shards) -> str:
    """A bank with these two versions, as a name."""
    commit_corpus(path, before)
    commit_corpus(path, after)
    return os.fspath(path)


def hexes(*texts: str) -> tuple[str, ...]:
    return tuple(sorted(chunk_id(text).hex() for text in texts))


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_documents_and_texts_that_come_go_and_change_are_told_apart(tmp_path: Path) -> None:
    kept = [Doc("kept", ("same",))]
    bank = two(
        tmp_path,
        [kept, [Doc("edited", ("old", "stays")), Doc("gone", ("left",)), Doc("still", ("quiet",))]],
        [kept, [Doc("edited", ("new", "stays")), Doc("still", ("quiet",)), Doc("come", ("fresh",))]],
    )
    found = diff_versions(bank)
    assert found.documents == DocumentChanges(
        added=Listed(1, ("come",)), removed=Listed(1, ("gone",)), changed=Listed(1, ("edited",))
    )
    assert found.chunks == ChunkChanges(
        added=Listed(2, hexes("new", "fresh")), removed=Listed(2, hexes("old", "left"))
    )
    assert not found.same
    assert found.before is not None
    assert (found.before.version, found.after.version) == (1, 2)
    assert found.before.facts["documents"] == 4
    backwards = diff_versions(f"{bank}@2", f"{bank}@1")
    assert (backwards.documents.added, backwards.documents.removed) == (
        found.documents.removed,
        found.documents.added,
    )
    assert (backwards.chunks.added, backwards.chunks.removed) == (found.chunks.removed, found.chunks.added)


def test_one_name_means_the_base_two_names_mean_what_they_say(tmp_path: Path) -> None:
    bank = os.fspath(tmp_path / "bank")
    for text in ("one", "two", "three"):
        commit_corpus(tmp_path / "bank", [[Doc("a", (text,))]])
    rollback(bank, 1)

    def sides(a: str, b: str | None = None) -> tuple[int | None, int]:
        found = diff_versions(a, b)
        return (found.before.version if found.before else None, found.after.version)

    assert sides(bank) == (3, 4)
    assert sides(f"{bank}@2") == (2, 4)
    assert sides(bank, f"{bank}@2") == (4, 2)
    assert sides(f"{bank}@3", f"{bank}@3") == (3, 3)
    assert diff_versions(Path(bank), Path(f"{bank}@1")).same


def test_a_directory_that_is_really_called_so_wins_over_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", "plain"), ("a@3", "at")):
        commit_corpus(tmp_path / name, [[Doc(f"{name} 1", (text,))]])
        commit_corpus(tmp_path / name, [[Doc(f"{name} 2", (text, text))]])
    assert diff_versions("a@3").documents.added.ids == ("a@3 2",)
    assert diff_versions("a@3@1", "a@1").documents.removed.ids == ("a@3 1",)
    with pytest.raises(UsageError, match="a: has no version 4"):
        diff_versions("a@4")
    assert split_version("a@3") == ("a@3", None)
    assert split_version("a/@2") == ("a/", 2)
    assert split_version("x@02") == ("x", 2)
    for whole in ("x@", "@3", "x@y", "x@3/", "x@-1", "x@٣", "x@" + "9" * 5000):
        assert split_version(whole) == (whole, None)


def test_two_banks_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    shared = [Doc("a", ("one",))]
    commit_corpus(tmp_path / "left", [shared, [Doc("b", ("two",))]])
    commit_corpus(tmp_path / "right", [[Doc("c", ("three",))], shared])
    found = diff_versions(tmp_path / "left", tmp_path / "right")
    assert (found.documents.added.ids, found.documents.removed.ids) == (("c",), ("b",))
    assert found.before is not None
    assert (found.before.bank, found.after.bank) == (str(tmp_path / "left"), str(tmp_path / "right"))
    assert found.sharing.files_shared > 0


def test_equal_versions_are_the_same_and_nothing_of_them_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = two(tmp_path, [[Doc("a", ("one",))]], [[Doc("a", ("two",))]])
    rollback(bank, 1)
    monkeypatch.setattr(diff_rows, "compare_rows", None)
    for a, b in (("@1", "@1"), ("@1", "@3"), ("@3", "@1")):
        found = diff_versions(bank + a, bank + b)
        assert found.same
        assert found.documents == DocumentChanges()
        assert found.chunks == ChunkChanges()
        assert found.settings == ()
        assert found.sharing.files_shared == found.sharing.files_after


def test_a_first_version_is_compared_with_nothing(tmp_path: Path) -> None:
    commit_corpus(tmp_path, [[Doc("a", ("one", "two"))], [Doc("b", ("two",))]])
    found = diff_versions(tmp_path)
    assert found.before is None
    assert found.to_json()["before"] is None
    assert found.documents.added == Listed(2, ("a", "b"))
    assert found.chunks.added == Listed(2, hexes("one", "two"))
    assert (found.sharing.files_before, found.sharing.files_shared, found.settings) == (0, 0, ())


def test_a_base_that_was_collected_is_a_usage_error_that_names_others(tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        commit_corpus(tmp_path, [[Doc("a", (text,))]])
    (tmp_path / "versions" / manifest_name(2)).unlink()
    with pytest.raises(UsageError, match=r"version 2, which is no longer there; choose one .*@VERSION \(1\)"):
        diff_versions(tmp_path)
    assert diff_versions(f"{tmp_path}@1").documents.changed.total == 1
    (tmp_path / "versions" / manifest_name(1)).unlink()
    with pytest.raises(UsageError, match="there is no other"):
        diff_versions(tmp_path)


def test_a_base_that_is_another_one_now_is_corrupt_unless_it_is_named(tmp_path: Path) -> None:
    bank = two(tmp_path, [[Doc("a", ("one",))]], [[Doc("a", ("two",))]])
    path = tmp_path / "versions" / manifest_name(1)
    changed = replace(read_manifest(bank, 1), created="2001-01-01T00:00:00Z")
    path.unlink()
    path.write_bytes(changed.to_bytes())
    with pytest.raises(CorruptError, match="another version 1"):
        diff_versions(bank)
    assert diff_versions(f"{bank}@1").documents.changed.total == 1


def test_what_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    commit_corpus(tmp_path / "bank", [[Doc("a", ("one",))]])
    for names in (("missing",), ("bank@2",), ("bank", "bank@9"), ("bank", "missing@1"), ("bank@0",)):
        with pytest.raises(UsageError):
            diff_versions(*(tmp_path / name for name in names))
    with pytest.raises(UsageError, match="a version is a number"):
        diff_versions(tmp_path / "bank@one")
    with pytest.raises(UsageError, match="negative"):
        diff_versions(tmp_path / "bank", limit=-1)


def test_a_text_in_several_shards_counts_once(tmp_path: Path) -> None:
    bank = two(
        tmp_path,
        [[Doc("a", ("twice", "once"))], [Doc("b", ("twice", "b"))]],
        [[Doc("a", ("thrice", "once"))], [Doc("b", ("thrice", "b"))], [Doc("c", ("thrice",))]],
    )
    found = diff_versions(bank).chunks
    assert found.added == Listed(1, hexes("thrice"))
    assert found.removed == Listed(1, hexes("twice"))


def test_a_text_that_lives_on_in_a_shared_shard_neither_comes_nor_goes(tmp_path: Path) -> None:
    shared = [Doc("a", ("lives on", "a")), Doc("b", ("was there",))]
    bank = two(
        tmp_path,
        [[Doc("x", ("lives on", "goes"))], shared, [Doc("y", ("y",))]],
        [[Doc("x", ("was there", "comes"))], shared, [Doc("y", ("y",))]],
    )
    found = diff_versions(bank)
    assert found.chunks.added == Listed(1, hexes("comes"))
    assert found.chunks.removed == Listed(1, hexes("goes"))
    assert found.documents.changed.ids == ("x",)


def test_documents_of_shared_shards_are_not_read(tmp_path: Path) -> None:
    shared = [Doc("a", ("one",))]
    bank = two(tmp_path, [shared, [Doc("b", ("two",))]], [shared, [Doc("b", ("three",))]])
    entry = read_manifest(bank).shards[0]
    for file in (entry.documents_file, entry.memories, entry.embeddings, entry.index):
        assert file is not None
        (tmp_path / "data" / file.name).unlink()
    assert diff_versions(bank).documents.changed.ids == ("b",)


def test_nothing_of_shared_shards_is_read_where_no_text_comes_or_goes(tmp_path: Path) -> None:
    shared = [Doc("a", ("one",))]
    bank = two(
        tmp_path,
        [shared, [Doc("b", ("two",)), Doc("c", ("three",))]],
        [shared, [Doc("b", ("two",)), Doc("c", ("three",), title="A title")], []],
    )
    for _, file in read_manifest(bank).shards[0].files():
        (tmp_path / "data" / file.name).unlink()
    assert diff_versions(bank).documents == DocumentChanges(other_metadata=1)


@pytest.mark.parametrize("kind", ["chunks", "documents_file"])
def test_a_flipped_bit_in_what_is_read_is_found(tmp_path: Path, kind: str) -> None:
    bank = two(tmp_path, [[Doc("a", ("one",))]], [[Doc("a", ("two",))]])
    name = getattr(read_manifest(bank).shards[0], kind).name
    flip(tmp_path / "data" / name, 0.6)
    with pytest.raises(CorruptError, match=name):
        diff_versions(bank)
    (tmp_path / "data" / name).unlink()
    with pytest.raises(CorruptError, match="missing"):
        diff_versions(bank)


def test_a_flipped_bit_in_the_chunks_of_a_shared_shard_is_found(tmp_path: Path) -> None:
    shared = [Doc("a", ("one",))]
    bank = two(tmp_path, [shared, [Doc("b", ("two",))]], [shared, [Doc("b", ("three",))]])
    name = read_manifest(bank).shards[0].chunks.name
    flip(tmp_path / "data" / name, 0.6)
    with pytest.raises(CorruptError, match=name):
        diff_versions(bank)


def test_an_occurrence_in_a_document_that_is_not_there_is_corrupt(tmp_path: Path) -> None:
    commit_corpus(tmp_path, [[Doc("a", ("one",))]])
    with BankWriter(tmp_path) as writer:
        shard = corpus_shard(writer, [Doc("a", ("one",)), Doc("b", ("two",))])
        other = corpus_shard(writer, [Doc("a", ("one",))])
        wrong = replace(shard, documents=1, documents_file=other.documents_file)
        writer.commit(contents([wrong], bank_files(writer)), writer.current())
    with pytest.raises(CorruptError, match="names document row 1 of a shard that has 1"):
        diff_versions(tmp_path)


@pytest.mark.parametrize("kind", ["chunks", "documents_file"])
def test_a_row_count_that_the_bytes_cannot_hold_is_corrupt_and_takes_no_memory(
    tmp_path: Path, kind: str
) -> None:
    bank = two(tmp_path, [[Doc("a", ("one",))]], [[Doc("a", ("two",))]])
    old = read_manifest(bank)
    shard = old.shards[0]
    entry = getattr(shard, kind)
    rows = 1 << 32
    each, batches = 1 << 16, rows >> 16
    first = entry.batches.head_bytes + 1
    size = first + batches
    lie = replace(
        entry,
        rows=rows - 1,
        bytes=size,
        batches=replace(
            entry.batches, rows=each, ends=tuple(range(first, size)), digests=("0" * 32,) * batches
        ),
    )
    if kind == "chunks":
        tables = {
            "rows": rows - 1,
            "chunks": lie,
            "memories": None,
            "embeddings": replace(lie, name=shard.embeddings.name, sha256=shard.embeddings.sha256),
        }
    else:
        tables = {"documents": rows - 1, "documents_file": lie}
    path = tmp_path / "versions" / manifest_name(2)
    path.unlink()
    counts = {**old.counts, "chunks": tables.get("rows", shard.rows)}
    path.write_bytes(replace(old, shards=(replace(shard, **tables),), counts=counts).to_bytes())
    (tmp_path / "data" / lie.name).chmod(0o644)
    os.truncate(tmp_path / "data" / lie.name, size)
    with pytest.raises(CorruptError, match="too few for 4294967295 rows"):
        diff_versions(bank)


def test_a_version_that_is_collected_while_it_is_compared_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = two(tmp_path, [[Doc("a", ("one",))]], [[Doc("a", ("two",))]])
    original = diff_rows.compare_rows

    def collected(*arguments: object) -> object:
        collect(bank, keep=1, grace=0)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(diff_rows, "compare_rows", collected)
    with pytest.raises(BusyError, match="version 1 was removed"):
        diff_versions(bank)


def test_ids_are_listed_in_order_up_to_the_limit_and_totals_are_whole(tmp_path: Path) -> None:
    names = [f"doc {number:03}" for number in range(100)]
    random.Random(1).shuffle(names)
    before = [Doc(name, (f"text of {name}",)) for name in names[:60]]
    after = [Doc(name, (f"text of {name}" + " edited" * (name in names[20:50]),)) for name in names[20:]]
    shards = [[before[:25], before[25:]], [after[:40], after[40:]]]
    bank = two(tmp_path, *shards)
    for limit in (0, 1, 7, 10**6):
        found = diff_versions(bank, limit=limit)
        assert found.documents.added == Listed(40, tuple(names[60:][:limit]))
        assert found.documents.removed == Listed(20, tuple(names[:20][:limit]))
        assert found.documents.changed == Listed(30, tuple(names[20:50][:limit]))
        new = hexes(
            *(text for doc in after for text in doc.chunks if "edited" in text or doc.id in names[60:])
        )
        assert found.chunks.added == Listed(70, new[:limit])
        assert found.chunks.removed.total == 50
        assert len(found.chunks.removed.ids) == min(limit, 50)


def test_a_document_cut_into_shards_in_another_way_has_not_changed(tmp_path: Path) -> None:
    long = ("p1", "p2", "p3", "p4")

    def parts(*cuts: int) -> list[Doc]:
        ends = [0, *cuts, 4]
        return [
            Doc("long", long[start:end], part=part, text="whole")
            for part, (start, end) in enumerate(pairwise(ends))
        ]

    one, two_ = parts(1), parts(2, 3)
    bank = two(
        tmp_path,
        [[Doc("a", ("a",)), one[0]], [one[1]]],
        [[Doc("a", ("b",)), two_[0]], [two_[1]], [two_[2], Doc("z", ("z",))]],
    )
    found = diff_versions(bank)
    assert found.documents == DocumentChanges(added=Listed(1, ("z",)), changed=Listed(1, ("a",)))
    assert found.chunks.added == Listed(2, hexes("b", "z"))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_document_whose_later_part_comes_or_goes_has_changed(tmp_path: Path, backwards: bool) -> None:
    head = [Doc("long", ("p1",), text="whole")]
    tail = [Doc("long", ("p2",), part=1, text="whole"), Doc("b", ("b",))]
    versions = [[head, tail], [head, [Doc("b", ("b",))]]]
    bank = two(tmp_path, *(versions[::-1] if backwards else versions))
    found = diff_versions(bank)
    assert found.documents == DocumentChanges(changed=Listed(1, ("long",)))
    assert (found.chunks.removed.total, found.chunks.added.total) == ((0, 1) if backwards else (1, 0))


def test_other_chunks_of_the_same_text_change_a_document_and_other_metadata_does_not(tmp_path: Path) -> None:
    bank = two(
        tmp_path,
        [[Doc("cut", ("one two",), text="t"), Doc("told", ("x",)), Doc("twice", ("r", "r"), text="r r")]],
        [
            [
                Doc("cut", ("one", "two"), text="t"),
                Doc("told", ("x",), metadata='{"license":"MIT"}'),
                Doc("twice", ("r",), text="r r"),
            ]
        ],
    )
    assert diff_versions(bank).documents == DocumentChanges(
        changed=Listed(2, ("cut", "twice")), other_metadata=1
    )


def test_an_edited_text_with_the_same_chunks_is_a_change(tmp_path: Path) -> None:
    bank = two(tmp_path, [[Doc("a", ("one",), text="one  ")]], [[Doc("a", ("one",), text="one")], []])
    found = diff_versions(bank)
    assert found.documents.changed.ids == ("a",)
    assert (found.chunks.added.total, found.chunks.removed.total) == (0, 0)


def test_empty_banks_shards_and_documents_are_no_trouble(tmp_path: Path) -> None:
    bank = two(tmp_path, [], [[], [Doc("empty", ())], [Doc("a", ("one",))]])
    assert diff_versions(bank).documents.added == Listed(2, ("empty", "a"))
    assert diff_versions(f"{bank}@2", f"{bank}@1").documents.removed.total == 2
    commit_corpus(tmp_path, [[Doc("a", ("one",))]])
    assert diff_versions(bank).documents == DocumentChanges(removed=Listed(1, ("empty",)))


def test_ids_of_any_kind_are_given_as_they_are(tmp_path: Path) -> None:
    ids = ["a\nb", "\x1b[31mred", "x" * 4096, "显式/记忆.md", "\u202egnp.exe", "tab\tand `tick`"]
    commit_corpus(tmp_path, [[Doc(identity, (f"text {n}",)) for n, identity in enumerate(ids)]])
    assert diff_versions(tmp_path).documents.added.ids == tuple(ids)


def test_an_id_that_ends_in_zero_bytes_is_listed_whole(tmp_path: Path) -> None:
    text = next(text for text in map(str, range(10**5)) if chunk_id(text).endswith(b"\0"))
    commit_corpus(tmp_path, [[Doc("a", (text,))]])
    assert diff_versions(tmp_path).chunks.added.ids == hexes(text)


def test_encoding_anew_is_counted_by_rows(bank: Path) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        swapped = replace(base.shards[1], memories=base.shards[1].memories)
        from sample_bank import chunk_rows, memory_array, write_shard

        chunks = chunk_rows(40, 0)
        anew = write_shard(writer, chunks, 0, memories=memory_array(chunks, seed=99))
        assert anew.chunks == base.shards[0].chunks
        new = replace(base.contents, shards=(anew, swapped), code_key="fedcba9876543210")
        writer.commit(new, base)
    found = diff_versions(bank)
    assert found.chunks == ChunkChanges(encoded_anew=40)
    assert found.documents == DocumentChanges()
    assert found.settings == (Setting("code_key", "0123456789abcdef", "fedcba9876543210"),)
    assert found.sharing.files_shared == found.sharing.files_after - 1


def test_settings_that_differ_are_listed_by_path_and_measurements_are_not(bank: Path) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        new = replace(
            base.contents,
            codec={**base.codec, "key_error": 0.5, "scope": "head", "trained_on": {"references": 3}},
            sources={"settings": {"title": True}, "files": 7},
            index={**base.index, "recall": 0.5},
            chunker={},
        )
        writer.commit(new, base)
    found = diff_versions(bank)
    assert found.settings == (
        Setting("chunker.reference_tokens", 128, None),
        Setting("codec.scope", None, "head"),
        Setting("sources.arguments", ["corpus"], None),
        Setting("sources.settings.title", None, True),
    )
    assert found.after.facts["codec"]["key_error"] == 0.5
    assert found.after.facts["index"]["recall"] == 0.5


def test_sharing_counts_each_file_once(bank: Path) -> None:
    first = read_manifest(bank)
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        counts = {**base.counts, "chunks": 7}
        writer.commit(replace(base.contents, shards=base.shards[1:], counts=counts), base)
    sharing = diff_versions(bank).sharing
    gone = sum(entry.bytes for _, entry in first.shards[0].files())
    total = sum(path.stat().st_size for path in (bank / "data").iterdir())
    assert (sharing.files_before, sharing.files_after, sharing.files_shared) == (14, 9, 9)
    assert (sharing.bytes_before, sharing.bytes_after, sharing.bytes_shared) == (
        total,
        total - gone,
        total - gone,
    )


def test_the_json_has_totals_ids_facts_and_settings(bank: Path) -> None:
    import json

    add_version(bank)
    value = json.loads(json.dumps(diff_versions(bank).to_json()))
    assert value["same"] is True
    assert value["before"]["version"] == 1
    assert value["after"]["bytes"]["total"] == value["sharing"]["bytes"]["after"]
    assert value["documents"]["added"] == {"total": 0, "ids": []}
    assert set(value["chunks"]) == {"added", "removed", "encoded_anew"}


def random_version(pool: random.Random) -> Shards:
    """Shards of documents that other versions may have too, cut at random, long documents into parts."""
    shards: list[list[Doc]] = [[]]
    for name in range(12):
        if pool.random() < 0.25:
            continue
        state = pool.randrange(3)
        texts = tuple(f"text {(name * state + n) % 9}" for n in range(pool.choice((0, 1, state + 1, 4))))
        title, whole = pool.choice(("", "", "title")), f"{name} {state} {texts}"
        cuts = sorted({0, len(texts), *([1] if len(texts) > 2 and pool.random() < 0.5 else [])})
        spans = list(pairwise(cuts)) or [(0, 0)]
        for part, (start, end) in enumerate(spans):
            if part or (name % 3 == 0 and shards[-1]):
                shards.append([])
            shards[-1].append(Doc(f"doc {name}", texts[start:end], title, part=part, text=whole))
    return shards


def slow_comparison(before: Shards, after: Shards) -> tuple[dict[str, set[str]], set[str], set[str]]:
    """The same answers from whole versions in memory."""

    def state(shards: Shards) -> tuple[dict[str, tuple[bytes, Counter[str]]], dict[str, str], set[str]]:
        documents: dict[str, tuple[bytes, Counter[str]]] = {}
        titles: dict[str, str] = {}
        for shard in shards:
            for document in shard:
                chunks = documents.setdefault(document.id, (document.sha256, Counter()))[1]
                chunks.update(document.chunks)
                titles[document.id] = document.title
        texts = {text for shard in shards for document in shard for text in document.chunks}
        return documents, titles, texts

    (old, old_titles, old_texts), (new, new_titles, new_texts) = state(before), state(after)
    both = old.keys() & new.keys()
    changed = {name for name in both if old[name] != new[name]}
    return (
        {
            "added": new.keys() - both,
            "removed": old.keys() - both,
            "changed": changed,
            "other_metadata": {n for n in both - changed if old_titles[n] != new_titles[n]},
        },
        new_texts - old_texts,
        old_texts - new_texts,
    )


@pytest.mark.parametrize("seed", range(25))
def test_it_agrees_with_a_comparison_of_whole_versions(tmp_path: Path, seed: int) -> None:
    pool = random.Random(seed)
    before = random_version(pool)
    after: Shards = [
        shard if pool.random() < 0.5 else edited
        for shard, edited in zip(before, before, strict=True)
        for edited in [[replace(doc, chunks=doc.chunks[1:]) for doc in shard]]
    ]
    if seed % 2:
        after = random_version(pool)
    found = diff_versions(two(tmp_path, before, after), limit=1000)
    documents, added, removed = slow_comparison(before, after)
    assert {
        "added": set(found.documents.added.ids),
        "removed": set(found.documents.removed.ids),
        "changed": set(found.documents.changed.ids),
    } == {kind: documents[kind] for kind in ("added", "removed", "changed")}
    for kind in ("added", "removed", "changed"):
        listed = getattr(found.documents, kind)
        assert listed.total == len(listed.ids) == len(documents[kind])
    assert found.documents.other_metadata == len(documents["other_metadata"])
    assert found.chunks.added == Listed(len(added), hexes(*added))
    assert found.chunks.removed == Listed(len(removed), hexes(*removed))


def test_memory_is_bounded_by_the_rows_that_differ(tmp_path: Path) -> None:
    def documents(start: int, count: int) -> list[Doc]:
        return [
            Doc(f"doc {n}", tuple(f"text {n} {part} " + "x" * 40 for part in range(4)))
            for n in range(start, start + count)
        ]

    kept = [documents(10**6 + 4000 * number, 4000) for number in range(3)]
    bank = two(tmp_path, [documents(0, 4000), *kept], [documents(4000, 4000), *kept])
    diff_versions(bank)
    tracemalloc.start()
    try:
        found = diff_versions(bank)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.chunks.added.total, found.chunks.removed.total) == (16000, 16000)
    # 33 bytes for each of 32,000 chunks and 49 for each of 8,000 documents, and a batch or two.
    assert peak < 1.5 * (33 * 32_000 + 49 * 8_000) + (2 << 20)


def test_sets_of_ids_keep_ids_that_end_in_zero_bytes_apart() -> None:
    texts = [bytes(31) + bytes([n]) for n in range(3)] + [bytes([n]) + bytes(31) for n in range(3)]
    texts += [b"\xff" * 32, b"\xff" * 31 + b"\0", b"\x80" + bytes(30) + b"\x7f"]
    ids = np.array(texts * 2, ID)
    random.Random(0).shuffle(texts)
    found = sorted_set(ids)
    assert [bytes(item).ljust(32, b"\0") for item in found] == sorted(set(texts))
    assert is_in(np.array(texts, ID), found).all()
    assert not is_in(np.array([b"\x01\x01"], ID), found).any()
    assert not is_in(found, np.empty(0, ID)).any()
    some = found[::2].copy()
    marked = np.zeros(len(found), np.bool_)
    mark(marked, found, np.array([b"other", *some.tolist()], ID))
    assert (keep(found.copy(), marked) == some).all()


def test_a_set_of_many_ids_is_that_of_python() -> None:
    random_ids = np.random.default_rng(0).integers(0, 256, (150_000, 32), np.uint8)
    random_ids[:, 2:] = 7
    ids = np.ascontiguousarray(random_ids).view(ID).reshape(-1)
    expected = sorted(set(ids.tolist()))
    assert sorted_set(ids.copy()).tolist() == expected
    others = sorted_set(ids[:70_000].copy())
    gone = sorted(set(expected) - set(others.tolist()))
    whole = sorted_set(ids.copy())
    assert keep(whole, ~is_in(whole, others)).tolist() == gone


def test_a_bank_that_was_copied_differs_in_nothing(tmp_path: Path) -> None:
    build_bank(tmp_path / "bank")
    shutil.copytree(tmp_path / "bank", tmp_path / "copy")
    assert diff_versions(tmp_path / "bank", tmp_path / "copy").same
