"""Merging banks makes the bank that one build of all sources would have made, without encoding anything."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import m3build
from m3build.pipeline import chunk_spool
from m3build.pipeline import merge as merge_module
from m3build.pipeline.merge_check import merged_libraries, merged_settings
from m3build_formats.bank import list_versions, open_bank, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import (
    BusyError,
    CorruptError,
    InputError,
    MismatchError,
    UsageError,
)
from m3build_formats.manifest import Manifest
from m3build_formats.verify import verify

WORDS = [
    "memory",
    "layer",
    "head",
    "token",
    "query",
    "key",
    "value",
    "bank",
    "shard",
    "index",
    "chunk",
    "model",
    "记忆",
    "attention",
    "search",
    "text",
]


def prose(draw: random.Random, sentences: int) -> str:
    return " ".join(
        " ".join(draw.choices(WORDS, k=draw.randint(4, 14))).capitalize() + "." for _ in range(sentences)
    )


def pool_of_files(draw: random.Random) -> dict[str, str]:
    """Files of several formats; sentences, records and whole texts stand in more than one of them."""
    common = [prose(draw, 8) for _ in range(3)]
    files = {}
    for number in range(8):
        parts = [
            draw.choice(common) if draw.random() < 0.3 else prose(draw, draw.randint(1, 12)) for _ in "abc"
        ]
        files[f"{draw.choice(['a', 'b', 'm/n'])}/{number}.txt"] = "\n\n".join(parts)
    files["copy.txt"] = next(iter(files.values()))
    files["long.txt"] = prose(draw, 80)
    files["guide.md"] = f"# Guide\n\n## One\n\n{prose(draw, 20)}\n\n## Two\n\n{common[0]}\n"
    files["page.html"] = f"<title>Page</title><h1>Top</h1><p>{prose(draw, 15)}</p><p>{common[1]}</p>"
    records = [{"text": prose(draw, 3), "lang": draw.choice(["en", "zh"])} for _ in range(12)]
    records += [records[0], {"text": common[2], "lang": "en"}, {"wrong": 1}]
    files["records.jsonl"] = "".join(json.dumps(record) + "\n" for record in records)
    files["more.jsonl"] = "".join(json.dumps(record) + "\n" for record in records[5:9])
    files["empty.txt"] = " \n"
    return files


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def build(corpus: Path, bank: Path, model: Path, **options: Any) -> Manifest:
    given = {"shard_chunks": 8, "codec": "SQ8", "dtype": "float32", "max_rejects": "50%", **options}
    return m3build.compile(corpus, bank, model=str(model), **given).manifest


def data_files(bank: Path) -> dict[str, bytes]:
    """Every data file but the rejects, which may stand in another order."""
    return {path.name: path.read_bytes() for path in (bank / "data").iterdir() if "rejects" not in path.name}


def rejects(bank: Path) -> list[Any]:
    with open_bank(bank) as files:
        return list(files.rejects())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Banks a and b over two overlapping corpora, u over both; a's codec in all."""
    place = tmp_path_factory.mktemp("two")
    files = pool_of_files(random.Random(7))
    names = sorted(files)
    write(place / "x", {name: files[name] for name in names[:9]})
    write(place / "y", {name: files[name] for name in names[6:]})
    build(place / "x", place / "a", tiny_llama)
    build(place / "y", place / "b", tiny_llama, codec_from=str(place / "a"))
    write(place / "xy", files)
    build(place / "xy", place / "u", tiny_llama, codec_from=str(place / "a"))
    return place


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {"shard_chunks": 4}),
        (1, {"shard_chunks": 8, "title": True, "keep_fields": ("lang",)}),
        (2, {"shard_chunks": 4, "index": "IVF4,SQ8", "codec": "PQ2x4"}),
        (3, {"shard_chunks": 4096, "codec": "none"}),
        (4, {"shard_chunks": 12, "reference_tokens": 40, "sparse_tokens": "5"}),
    ],
)
def test_a_merge_makes_the_bytes_of_one_build_of_all_sources(
    seed: int, options: dict[str, Any], tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shards are small here, and their chunks wait on disk all the same.
    monkeypatch.setattr(chunk_spool, "BLOCK_CHUNKS", 3)
    draw = random.Random(seed)
    files = pool_of_files(draw)
    parts = [{name: text for name, text in files.items() if draw.random() < 0.55} for _ in range(3)]
    parts[0]["long.txt"] = parts[1]["long.txt"] = files["long.txt"]
    corpora = [write(tmp_path / f"corpus-{number}", part) for number, part in enumerate(parts)]
    together = write(tmp_path / "together", {**parts[0], **parts[1], **parts[2]})
    banks = [tmp_path / f"bank-{number}" for number in range(3)]
    build(corpora[0], banks[0], tiny_llama, **options)
    for corpus, bank in zip(corpora[1:], banks[1:], strict=True):
        build(corpus, bank, tiny_llama, **options, codec_from=str(banks[0]))
    expected = build(together, tmp_path / "expected", tiny_llama, **options, codec_from=str(banks[0]))

    result = m3build.merge(banks, tmp_path / "merged")

    assert data_files(tmp_path / "merged") == data_files(tmp_path / "expected")
    merged = result.manifest
    assert merged.shards == expected.shards
    for section in ("chunker", "model", "memory", "codec", "embedder", "index", "code_key", "row_bytes"):
        assert getattr(merged, section) == getattr(expected, section), section
    shaped = ("documents", "chunks", "tokens", "characters", "duplicates", "rejects", "unsupported_files")
    assert {name: merged.counts[name] for name in shaped} == {name: expected.counts[name] for name in shaped}
    assert Counter(rejects(tmp_path / "merged")) == Counter(rejects(tmp_path / "expected"))
    assert (
        result.shared
        == sum(read_manifest(bank).counts["documents"] for bank in banks) - (expected.counts["documents"])
    )
    assert result.copied + result.repeated == merged.counts["chunks"]
    found = verify(tmp_path / "merged")
    assert not found.problems
    assert not found.unreachable
    assert not (tmp_path / "merged" / "build").exists()


def test_the_order_of_the_banks_changes_no_byte(two: Path, tmp_path: Path) -> None:
    m3build.merge([two / "b", two / "a"], tmp_path / "ba")
    assert data_files(tmp_path / "ba") == data_files(two / "u")


def test_a_bank_merged_with_itself_is_itself(two: Path, tmp_path: Path) -> None:
    result = m3build.merge([two / "a", two / "a"], tmp_path / "aa")
    before, after = read_manifest(two / "a"), result.manifest
    assert (after.shards, after.files, dict(after.counts)) == (before.shards, before.files, before.counts)
    assert result.shared == before.counts["documents"]


def test_a_merged_bank_can_be_merged(two: Path, tmp_path: Path) -> None:
    m3build.merge([two / "a", two / "b"], tmp_path / "ab")
    again = m3build.merge([tmp_path / "ab", two / "b", two / "a"], tmp_path / "abba")
    assert data_files(tmp_path / "abba") == data_files(two / "u")
    assert [bank["name"] for bank in again.banks] == ["ab", "b", "a"]


def test_the_manifest_says_what_was_merged_without_any_path(two: Path, tmp_path: Path) -> None:
    manifest = m3build.merge([two / "a", f"{two}/x/../b/"], tmp_path / "c").manifest
    assert (manifest.version, manifest.base, manifest.operation) == (1, None, "merge")
    assert manifest.sources["banks"] == [
        {
            "name": name,
            "version": 1,
            "sha256": read_manifest(two / name).sha256,
            "documents": read_manifest(two / name).counts["documents"],
        }
        for name in ("a", "b")
    ]
    assert os.fspath(two) not in (tmp_path / "c" / "versions" / "00000001.json").read_text()


def test_counts_of_what_left_no_document_add_up(tmp_path: Path, tiny_llama: Path) -> None:
    draw = random.Random(3)
    both = {"shared.jsonl": '{"wrong": 1}\n{"wrong": 1}\n' + json.dumps({"text": prose(draw, 4)}) + "\n"}
    write(tmp_path / "x", {**both, "a.txt": prose(draw, 30), "a.bin": "\0\1", "e.txt": " "})
    write(tmp_path / "y", {**both, "b.txt": prose(draw, 30), "b.jsonl": "{}\n{\n", "f.txt": ""})
    build(tmp_path / "x", tmp_path / "a", tiny_llama, max_rejects="99%")
    build(tmp_path / "y", tmp_path / "b", tiny_llama, max_rejects="99%", codec_from=str(tmp_path / "a"))
    counts = m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c").manifest.counts
    assert (counts["rejects"], counts["unsupported_files"], counts["empty_documents"]) == (4, 1, 2)
    listed = rejects(tmp_path / "c")
    assert Counter((row.source, row.kind) for row in listed) == {
        ("shared.jsonl", "reject"): 2,
        ("b.jsonl", "reject"): 2,
        ("a.bin", "unsupported"): 1,
    }


def test_compiling_into_a_merged_bank_takes_its_settings_and_encodes_nothing_that_it_has(
    two: Path, tmp_path: Path
) -> None:
    m3build.merge([two / "a", two / "b"], tmp_path / "c")
    again = m3build.compile(two / "xy", tmp_path / "c", max_rejects="50%")
    assert (again.version, again.encoded) == (2, 0)
    assert again.manifest.shards == read_manifest(two / "u").shards
    assert again.manifest.sources["settings"] == read_manifest(two / "u").sources["settings"]
    write(tmp_path / "xy2", {"new.txt": "A new text that no bank has.", "0.txt": "Another one."})
    grown = m3build.compile([two / "xy", tmp_path / "xy2"], tmp_path / "c", max_rejects="50%")
    assert grown.encoded == 2


def test_how_sources_are_read_is_left_open_where_the_banks_differ(tmp_path: Path, tiny_llama: Path) -> None:
    write(
        tmp_path / "x", {"x.jsonl": "".join(json.dumps({"text": f"Text {i} of x."}) + "\n" for i in range(9))}
    )
    write(
        tmp_path / "y", {"y.jsonl": "".join(json.dumps({"body": f"Text {i} of y."}) + "\n" for i in range(9))}
    )
    build(tmp_path / "x", tmp_path / "a", tiny_llama)
    codec_from = str(tmp_path / "a")
    build(tmp_path / "y", tmp_path / "b", tiny_llama, text_field="body", codec_from=codec_from)
    result = m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    settings = result.manifest.sources["settings"]
    assert "text_field" not in settings
    assert settings["codec"] == "SQ8"
    assert any("--text-field" in note for note in result.notes)
    # Leaving it out of the manifest means that saying it is no contradiction.
    later = m3build.compile(tmp_path / "y", tmp_path / "c", text_field="body", allow_shrink=True)
    assert (later.encoded, later.manifest.counts["documents"]) == (0, 9)


def conflicting(tmp_path: Path, model: Path, **options: Any) -> list[Path]:
    """Two banks with a.txt and b.txt alike and c.txt in two versions, of which the second is longer."""
    draw = random.Random(1)
    same = {"a.txt": prose(draw, 20), "b.txt": prose(draw, 20)}
    write(tmp_path / "x", {**same, "c.txt": prose(draw, 10)})
    write(tmp_path / "y", {**same, "c.txt": prose(draw, 30)})
    build(tmp_path / "x", tmp_path / "a", model, **options)
    build(tmp_path / "y", tmp_path / "b", model, codec_from=str(tmp_path / "a"), **options)
    return [tmp_path / "a", tmp_path / "b"]


def test_what_one_bank_excludes_does_not_come_back_from_another(tmp_path: Path, tiny_llama: Path) -> None:
    draw = random.Random(6)
    record = json.dumps({"text": prose(draw, 3)}) + "\n"
    files = {f"{number}.txt": prose(draw, 15) for number in range(6)}
    files |= {"secret/a.txt": prose(draw, 9), "secret/b.jsonl": "{}\n", "r.jsonl": record + "{}\n" + record}
    write(tmp_path / "x", files)
    build(tmp_path / "x", tmp_path / "b", tiny_llama, max_rejects="90%")
    with open_bank(tmp_path / "b") as opened:
        ids = [row.id for shard in opened.shards for row in shard.document_rows()]
    numbered = next(name for name in ids if name.endswith(":2"))
    exclude = (numbered.removesuffix(":2"), "secret/*", "nothing like it")
    given: dict[str, Any] = {"codec_from": str(tmp_path / "b"), "max_rejects": "90%"}
    write(tmp_path / "y", {"7.txt": prose(draw, 20), **{name: files[name] for name in ("0.txt", "1.txt")}})
    build(tmp_path / "y", tmp_path / "a", tiny_llama, exclude=exclude, **given)
    result = m3build.merge([tmp_path / "b", tmp_path / "a"], tmp_path / "c")
    write(tmp_path / "xy", files)
    write(tmp_path / "xy", {"7.txt": (tmp_path / "y" / "7.txt").read_text(encoding="utf-8")})
    expected = build(tmp_path / "xy", tmp_path / "expected", tiny_llama, exclude=exclude, **given)
    assert data_files(tmp_path / "c") == data_files(tmp_path / "expected")
    assert [row.source for row in rejects(tmp_path / "c")] == ["r.jsonl"]
    assert dict(result.manifest.counts) == {**expected.counts, "excluded": 3}
    assert result.manifest.sources["settings"]["exclude"] == sorted(exclude)
    assert any("3 documents are left out" in note for note in result.notes)
    again = m3build.compile(tmp_path / "xy", tmp_path / "c", max_rejects="90%")
    assert (again.encoded, again.manifest.shards) == (0, expected.shards)


def test_a_reference_text_that_is_divided_in_two_ways_keeps_both(tmp_path: Path, tiny_llama: Path) -> None:
    draw = random.Random(8)
    records: dict[str, list[dict[str, str]]] = {"x": [], "y": []}
    for number in range(16):
        title, text = f"Title {number}", prose(draw, 2)
        records["x"] += [{"id": f"{number:02}a", "title": title, "text": text}]
        records["y"] += [{"id": f"{number:02}b", "title": "", "text": prose(draw, 2)}]
        records["x"] += [{"id": f"{number:02}c", "title": "", "text": f"{title}\n{text}"}]
    for place, listed in (*records.items(), ("xy", records["x"] + records["y"])):
        write(tmp_path / place, {f"{record['id']}.jsonl": json.dumps(record) + "\n" for record in listed})
    options = {"title": True, "title_field": "title", "id_field": "id", "shard_chunks": 2}
    build(tmp_path / "x", tmp_path / "a", tiny_llama, **options)
    given = {**options, "codec_from": str(tmp_path / "a")}
    build(tmp_path / "y", tmp_path / "b", tiny_llama, **given)
    build(tmp_path / "xy", tmp_path / "expected", tiny_llama, **given)
    m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert data_files(tmp_path / "c") == data_files(tmp_path / "expected")

    def untitled(bank: Path) -> int:
        with open_bank(bank) as files:
            chunks = [chunk for shard in files.shards for chunk in shard.chunks()]
        return sum(chunk.text.startswith("Title ") for chunk in chunks)

    assert untitled(tmp_path / "c") > untitled(tmp_path / "a"), "the test must meet the case"


def test_different_documents_under_one_id_are_refused_and_named(tmp_path: Path, tiny_llama: Path) -> None:
    banks = conflicting(tmp_path, tiny_llama)
    with pytest.raises(
        InputError, match=r"/a and .*/b hold different documents under the id 'c\.txt'.*--prefer"
    ):
        m3build.merge(banks, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("prefer", "like"), [("first", "x"), ("last", "y")])
def test_the_preferred_banks_document_is_taken(
    prefer: Any, like: str, tmp_path: Path, tiny_llama: Path
) -> None:
    banks = conflicting(tmp_path, tiny_llama)
    result = m3build.merge(banks, tmp_path / "c", prefer=prefer)
    build(tmp_path / like, tmp_path / "expected", tiny_llama, codec_from=str(tmp_path / "a"))
    assert data_files(tmp_path / "c") == data_files(tmp_path / "expected")
    assert (result.shared, result.replaced) == (2, 1)


def test_a_title_or_a_kept_field_is_content_too(tmp_path: Path, tiny_llama: Path) -> None:
    for place, date in (("x", "monday"), ("y", "friday")):
        lines = [
            {"id": f"n{i}", "text": f"Text number {i}.", "date": date if i == 4 else ""} for i in range(9)
        ]
        write(tmp_path / place, {f"{place}.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    options: dict[str, Any] = {"id_field": "id", "keep_fields": ("date",)}
    build(tmp_path / "x", tmp_path / "a", tiny_llama, **options)
    build(tmp_path / "y", tmp_path / "b", tiny_llama, codec_from=str(tmp_path / "a"), **options)
    with pytest.raises(InputError, match="'n4'"):
        m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    result = m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c", prefer="last")
    assert (result.manifest.counts["documents"], result.shared, result.replaced) == (9, 8, 1)
    with open_bank(tmp_path / "c") as files:
        rows = {row.id: row for shard in files.shards for row in shard.document_rows()}
    assert json.loads(rows["n4"].metadata) == {"date": "friday"}
    assert {row.source for row in rows.values()} == {"x.jsonl", "y.jsonl"}, (
        "equal ones stay where they are first"
    )


def test_the_same_text_cut_in_another_way_is_another_document(tmp_path: Path, tiny_llama: Path) -> None:
    text = prose(random.Random(2), 12)
    for place, tag in (("x", "h2"), ("y", "p")):
        write(tmp_path / place, {"page.html": f"<{tag}>Head</{tag}><p>{text}</p>"})
    build(tmp_path / "x", tmp_path / "a", tiny_llama, title=True, codec="none")
    build(tmp_path / "y", tmp_path / "b", tiny_llama, title=True, codec="none")
    rows = []
    for bank in ("a", "b"):
        with open_bank(tmp_path / bank) as files:
            rows.append(next(files.shards[0].document_rows()))
    assert rows[0].sha256 == rows[1].sha256
    with pytest.raises(InputError, match=r"'page\.html'"):
        m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c", prefer="last")
    assert data_files(tmp_path / "c") == data_files(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"sparse_tokens": "4"}, r"memory\.sparse_tokens is 8 in .*/a, 4 in .*/b"),
        ({"memory_layers": "0"}, r"memory\.memory_layers is \[0, 1\] in .*/a, \[0\] in .*/b"),
        ({"select": "first"}, r"memory\.selection is memory3 in .*/a, first in .*/b"),
        ({"reference_tokens": 64}, r"memory\.reference_tokens is 128 in .*/a, 64 in .*/b"),
        ({"reference_bos": "Text:"}, r"model\.reference_bos_ids"),
        ({"dtype": "bfloat16"}, r"model\.dtype is float32 in .*/a, bfloat16 in .*/b"),
        ({"title": True}, r"chunker\.title is False in .*/a, True in .*/b"),
        ({"shard_chunks": 9}, r"chunker\.shard_chunks is 8 in .*/a, 9 in .*/b"),
        ({"codec": "SQ4"}, r"codec\.spec is SQ8 in .*/a, SQ4 in .*/b.*--codec-from .*/a"),
        ({}, r"the codec file is [0-9a-f]{8}.*--rebuild --codec-from .*/a"),
    ],
    ids=str,
)
def test_banks_that_do_not_fit_are_refused_with_both_values_and_a_way_out(
    options: dict[str, Any], fact: str, two: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    write(tmp_path / "y", {"other.txt": prose(random.Random(5), 40)})
    build(tmp_path / "y", tmp_path / "b", tiny_llama, **options)
    with pytest.raises(MismatchError, match=fact):
        m3build.merge([two / "a", tmp_path / "b"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_another_model_is_refused(two: Path, tmp_path: Path) -> None:
    from models import save_tiny_model

    build(two / "y", tmp_path / "b", save_tiny_model(tmp_path / "other", seed=5))
    with pytest.raises(MismatchError, match=r"model\.fingerprint"):
        m3build.merge([two / "a", tmp_path / "b"], tmp_path / "c")


def recommit(bank: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Replaces the manifest of a bank's version 1."""
    changed = change(read_manifest(bank))
    shutil.rmtree(bank / "versions")
    with BankWriter(bank) as writer:
        writer.commit(changed.contents, None)


def test_whatever_else_shapes_a_code_is_seen_by_the_code_key(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "b", tmp_path / "b")
    recommit(tmp_path / "b", lambda manifest: replace(manifest, code_key="0" * 64))
    with pytest.raises(MismatchError, match="code_key"):
        m3build.merge([two / "a", tmp_path / "b"], tmp_path / "c")


def test_a_place_that_is_taken_is_refused(two: Path, tmp_path: Path) -> None:
    a, b = two / "a", two / "b"
    (tmp_path / "link").symlink_to(a)
    for out in (a, b, tmp_path / "link", a / "inside", a / "data", f"{two}/b/../a"):
        with pytest.raises(UsageError, match="lies in"):
            m3build.merge([a, b], out)
    with pytest.raises(UsageError, match="holds a bank already"):
        m3build.merge([a, b], two / "u")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UsageError, match="other things in it"):
        m3build.merge([a, b], tmp_path / "full")
    with pytest.raises(UsageError, match="two banks"):
        m3build.merge([a], tmp_path / "c")
    with pytest.raises(UsageError, match="no bank"):
        m3build.merge([a, tmp_path / "full"], tmp_path / "c")
    (tmp_path / "empty").mkdir()
    with BankWriter(tmp_path / "empty"), pytest.raises(BusyError):
        m3build.merge([a, b], tmp_path / "empty")
    m3build.merge([a, b], tmp_path / "empty")
    assert not (a / "inside").exists()


@pytest.mark.parametrize("kind", ["chunks", "documents", "memories", "codec", "rejects"])
def test_a_damaged_bank_is_named_and_nothing_is_committed(kind: str, two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "b", tmp_path / "b")
    manifest = read_manifest(tmp_path / "b")
    entries = {**dict(manifest.shards[-1].files()), **dict(manifest.files.files())}
    path = tmp_path / "b" / "data" / entries[kind].name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)
    order = [tmp_path / "b", two / "a"] if kind == "codec" else [two / "a", tmp_path / "b"]
    with pytest.raises(CorruptError, match=path.name):
        m3build.merge(order, tmp_path / "c")
    assert not (tmp_path / "c" / "versions").exists() or list_versions(tmp_path / "c") == []


def test_a_chunk_without_its_memory_is_corruption(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3build.pipeline.places import Places

    monkeypatch.setattr(Places, "add_rows", lambda self, shard, rows: None)
    with pytest.raises(CorruptError, match="no bank has a memory of the chunk"):
        m3build.merge([two / "a", two / "b"], tmp_path / "c")


def test_a_merge_that_was_stopped_goes_on_to_the_same_bytes(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = merge_module.MemoryWriter.write
    calls = 0

    def stop_in_the_middle(self: Any, shard: Any, *others: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(self, shard, *others)

    with monkeypatch.context() as patch:
        patch.setattr(merge_module.MemoryWriter, "write", stop_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            m3build.merge([two / "a", two / "b"], tmp_path / "c")
    assert list_versions(tmp_path / "c") == []
    m3build.merge([two / "a", two / "b"], tmp_path / "c")
    assert data_files(tmp_path / "c") == data_files(two / "u")


def test_no_model_is_loaded(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import m3build.model.load

    monkeypatch.setattr(m3build.model.load, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    recorded = read_manifest(two / "a").sources["settings"]["model"]
    shutil.copytree(two / "a", tmp_path / "a")
    recommit(
        tmp_path / "a",
        lambda manifest: replace(
            manifest, sources={"settings": {**manifest.sources["settings"], "model": "/not/there"}}
        ),
    )
    assert recorded != "/not/there"
    m3build.merge([tmp_path / "a", two / "b"], tmp_path / "c")
    assert data_files(tmp_path / "c") == data_files(two / "u")


def test_an_embedder_can_be_taken_over(two: Path, tmp_path: Path, tiny_llama: Path) -> None:
    manifest = m3build.merge([two / "a", two / "b"], tmp_path / "c", embedder_from=two / "b").manifest
    given = {"codec_from": str(two / "a"), "embedder_from": str(two / "b")}
    build(two / "xy", tmp_path / "expected", tiny_llama, **given)
    assert data_files(tmp_path / "c") == data_files(tmp_path / "expected")
    assert manifest.files.embedder == read_manifest(two / "b").files.embedder


def test_a_neural_embedder_must_be_at_hand(two: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(two / name, tmp_path / name)
        recommit(
            tmp_path / name,
            lambda manifest: replace(
                manifest,
                embedder={**manifest.embedder, "name": "some/encoder"},
                sources={"settings": {**manifest.sources["settings"], "embedder": "./no-such-encoder"}},
            ),
        )
    with pytest.raises(UsageError, match="embedded by some/encoder, which a merge needs"):
        m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    with pytest.raises(MismatchError, match=r"embedder\.name is some/encoder in .*/a, lexical in .*/b"):
        m3build.merge([tmp_path / "a", two / "b"], tmp_path / "c")
    with pytest.raises(MismatchError, match="some/encoder"):
        m3build.merge([two / "a", two / "b"], tmp_path / "c", embedder_from=tmp_path / "a")


def test_near_duplicates_across_banks_are_left_out(tmp_path: Path, tiny_llama: Path) -> None:
    pytest.importorskip("datasketch", reason="needs the near-duplicates extra")
    draw = random.Random(4)
    text = prose(draw, 40)
    write(tmp_path / "x", {"a.txt": text, "c.txt": prose(draw, 20)})
    write(
        tmp_path / "y",
        {"b.txt": text.replace("memory", "memories", 1), "c.txt": "", "d.txt": prose(draw, 20)},
    )
    build(tmp_path / "x", tmp_path / "a", tiny_llama, near_duplicates=0.7)
    build(tmp_path / "y", tmp_path / "b", tiny_llama, near_duplicates=0.7, codec_from=str(tmp_path / "a"))
    counts = m3build.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c").manifest.counts
    assert counts["near_duplicates"] >= 1
    assert not verify(tmp_path / "c").problems


def test_libraries_that_made_memories_are_the_banks_and_the_others_ours(two: Path) -> None:
    one = read_manifest(two / "a")
    other = replace(one, libraries={**one.libraries, "torch": "2.1", "numpy": "1.0"})
    here = {**one.libraries, "torch": "9.9", "numpy": "9.9"}
    assert merged_libraries([one, one], here) == {**one.libraries, "numpy": "9.9"}
    assert merged_libraries([one, other], here)["torch"] == f"2.1, {one.libraries['torch']}"


def test_settings_of_banks_that_record_none_are_left_to_the_defaults(two: Path) -> None:
    one = read_manifest(two / "a")
    bare = replace(one, sources={})
    assert merged_settings([bare, bare]) == ({"model": one.model["name"]}, [])
    merged, differing = merged_settings([one, bare])
    assert "--text-field" in differing
    assert merged["codec"] == "SQ8"
