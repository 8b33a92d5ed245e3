"""From files to a bank: the same bytes whatever the way, nothing lost, work done once."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import build, data_files, sentence, write_corpus

from m3build.api import compile as compile_bank
from m3build.bank import open_bank
from m3build.config import CompileOptions, RunOptions
from m3build.pipeline import build as build_module
from m3build.pipeline import vector_stage
from m3build.pipeline.planning import plan_build
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.errors import InputError, MismatchError, UsageError
from m3build_formats.info import describe
from m3build_formats.verify import verify


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A bank of the corpus with the codec that is chosen of itself, which has a rotation and codebooks."""
    place = tmp_path_factory.mktemp("built")
    result = build(write_corpus(place / "corpus"), place / "bank", tiny_llama, codec="auto")
    assert result.manifest.codec["spec"].startswith("OPQ")
    return place / "bank"


@pytest.fixture
def bank(built: Path, tmp_path: Path) -> Path:
    """A copy of that bank, beside ``corpus``."""
    shutil.copytree(built, tmp_path / "bank")
    return tmp_path / "bank"


def again(corpus: Path, bank: Path, model: Path, **options: Any) -> Any:
    """Builds as ``built`` was."""
    return build(corpus, bank, model, **{"codec": "auto", **options})


def test_a_bank_holds_what_the_sources_hold(built: Path, corpus: Path) -> None:
    facts = describe(read_manifest(built))
    assert facts["documents"] == 14
    assert facts["empty_documents"] == 1
    assert facts["shards"] > 2
    assert facts["model"]["memory_layers"] == [0, 1]
    report = verify(built)
    assert not report.problems
    assert not report.unreachable
    with open_bank(built) as bank:
        rebuilt: dict[str, list[tuple[int, int, str]]] = {}
        for shard in bank.files.shards:
            for chunk in shard.chunks():
                assert 0 < chunk.tokens <= 128
                for place in chunk.occurrences:
                    rebuilt.setdefault(place.document, []).append((place.start, place.end, chunk.text))
    for path in sorted(corpus.iterdir()):
        text = path.read_text(encoding="utf-8")
        spans = sorted(rebuilt.get(path.name, []))
        assert "".join("".join(part.split()) for _, _, part in spans) == "".join(text.split())
        assert all(text[start:end] == part for start, end, part in spans)


def test_two_builds_in_different_places_give_the_same_bytes(
    built: Path, corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    again(corpus, tmp_path / "elsewhere" / "b", tiny_llama, batch_tokens=512)
    assert data_files(built) == data_files(tmp_path / "elsewhere" / "b")


def test_building_again_changes_nothing_and_makes_no_version(bank: Path, corpus: Path) -> None:
    second = compile_bank(corpus, bank)
    assert not second.changed
    assert second.encoded == 0
    assert list_versions(bank) == [1]


def test_an_edit_encodes_only_the_chunks_that_changed(
    bank: Path, corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    first = read_manifest(bank)
    path = corpus / "05.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("number 201.", "number nine."), encoding="utf-8")
    second = again(corpus, bank, tiny_llama)
    assert second.version == 2
    assert 1 <= second.encoded <= 2
    assert second.encoded + second.reused + second.repeated == describe(second.manifest)["chunks"]
    given = {"codec_from": str(bank), "embedder_from": str(bank)}
    fresh = again(corpus, tmp_path / "fresh", tiny_llama, **given).manifest
    assert second.manifest.shards == fresh.shards
    assert first.shards != second.manifest.shards


def test_documents_that_vanish_leave_the_bank(bank: Path, corpus: Path, tiny_llama: Path) -> None:
    (corpus / "03.txt").unlink()
    result = again(corpus, bank, tiny_llama)
    assert result.encoded == 0
    assert describe(result.manifest)["documents"] == 13


def test_losing_over_half_of_the_documents_must_be_allowed(
    bank: Path, corpus: Path, tiny_llama: Path
) -> None:
    for path in sorted(corpus.iterdir())[2:]:
        path.unlink()
    with pytest.raises(InputError, match="--allow-shrink"):
        again(corpus, bank, tiny_llama)
    assert again(corpus, bank, tiny_llama, allow_shrink=True).version == 2


def test_a_stopped_build_goes_on_and_ends_in_the_same_bytes(
    built: Path, corpus: Path, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build_module.MemoryWriter.write
    calls = 0

    def stop_in_the_middle(self: Any, shard: Any, *others: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(self, shard, *others)

    monkeypatch.setattr(build_module.MemoryWriter, "write", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        again(corpus, tmp_path / "stopped", tiny_llama)
    assert list_versions(tmp_path / "stopped") == []
    monkeypatch.setattr(build_module.MemoryWriter, "write", original)
    result = again(corpus, tmp_path / "stopped", tiny_llama)
    assert result.reused > 0
    assert result.encoded < describe(result.manifest)["chunks"]
    assert data_files(tmp_path / "stopped") == data_files(built)


def test_a_text_that_stands_in_many_shards_is_encoded_once_and_found_once(
    tmp_path: Path, tiny_llama: Path
) -> None:
    directory = tmp_path / "corpus"
    directory.mkdir()
    for number in range(40):
        own = " ".join(sentence(number * 10 + i) for i in range(6))
        (directory / f"{number:02d}.jsonl").write_text(
            json.dumps({"text": "The very same words about ferrets."})
            + "\n"
            + json.dumps({"text": own})
            + "\n",
            encoding="utf-8",
        )
    result = build(directory, tmp_path / "bank", tiny_llama, shard_chunks=4)
    facts = describe(result.manifest)
    assert facts["shards"] > 3
    assert facts["duplicates"] == 39
    with open_bank(tmp_path / "bank") as bank:
        holding = sum(any("ferrets" in c.text for c in shard.chunks()) for shard in bank.files.shards)
        assert 1 < holding <= facts["shards"]
        assert result.repeated == holding - 1
        hits = bank.search(["ferrets"], k=5)
        assert hits.texts[0].count("The very same words about ferrets.") == 1
        assert len(hits.sources[0][0]) == 40


@pytest.mark.parametrize("sentences", [1, 10, 100])
def test_tiny_corpora_make_banks_that_open(sentences: int, tmp_path: Path, tiny_llama: Path) -> None:
    source = tmp_path / "few.jsonl"
    source.write_text(
        "".join(json.dumps({"text": sentence(i)}) + "\n" for i in range(sentences)), encoding="utf-8"
    )
    result = build(source, tmp_path / "bank", tiny_llama)
    assert describe(result.manifest)["chunks"] == sentences
    assert not verify(tmp_path / "bank").problems
    with open_bank(tmp_path / "bank") as bank:
        assert bank.search([sentence(0)], k=1).texts[0] == [sentence(0)]


def test_stored_memories_are_what_the_encoder_gives(corpus: Path, tmp_path: Path, tiny_llama: Path) -> None:
    """Without a codec the bank holds bfloat16 keys and values: the encoder's own, rounded once, row by "
    "row."""
    import torch

    from m3build.encode import ReferenceEncoder
    from m3build.model import ShapeRequest, load_model

    build(
        corpus,
        tmp_path / "bank",
        tiny_llama,
        codec="none",
        dtype="float32",
        memory_heads="1:1;3:0,1",
        sparse_tokens="5",
    )
    model = load_model(
        str(tiny_llama),
        ShapeRequest(memory_heads={1: [1], 3: [0, 1]}, sparse_tokens=5),
        device="cpu",
        dtype="float32",
    )
    with open_bank(tmp_path / "bank") as bank:
        shard = bank.files.shards[1]
        rows = list(range(shard.rows))
        stored = shard.memories(rows)
        texts = [shard.chunk(row).text for row in rows]
    tokens = [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for batch in ReferenceEncoder(model).encode(tokens):
        for at, index in enumerate(batch.indices):
            expected: list[bytes] = []
            for members in ([0], [1, 2]):
                for vectors in (batch.keys, batch.values):
                    raw = vectors[at, members].to(torch.bfloat16).contiguous().view(torch.uint8)
                    expected.append(raw.numpy().tobytes())
            expected.append(batch.positions[at].numpy().tobytes())
            assert stored[index].tobytes() == b"".join(expected)


def test_bad_records_cost_only_themselves(tmp_path: Path, tiny_llama: Path) -> None:
    source = tmp_path / "records.jsonl"
    good = [json.dumps({"text": sentence(i)}) for i in range(20)]
    source.write_text("\n".join([*good[:5], '{"text": ', *good[5:], '{"other": 1}']) + "\n", encoding="utf-8")
    result = build(source, tmp_path / "bank", tiny_llama, max_rejects="50%")
    facts = describe(result.manifest)
    assert (facts["documents"], facts["rejects"]) == (20, 2)
    with open_bank(tmp_path / "bank") as bank:
        listed = list(bank.files.rejects())
    assert [row.source for row in listed] == ["records.jsonl"] * 2
    assert "line 6" in listed[0].where


@pytest.mark.parametrize("limit", ["1%", "1"])
def test_too_many_rejects_stop_the_build_and_the_bank_stays(
    limit: str, bank: Path, corpus: Path, tiny_llama: Path
) -> None:
    (corpus / "bad.jsonl").write_text('{"text": 1}\n{"text": 2}\n{"text": 3}\n', encoding="utf-8")
    before = data_files(bank)
    for path in corpus.glob("0*.txt"):
        path.write_text(path.read_text(encoding="utf-8") + " Another end.", encoding="utf-8")
    with pytest.raises(InputError, match="--max-rejects"):
        again(corpus, bank, tiny_llama, max_rejects=limit)
    assert list_versions(bank) == [1]
    # Shards are written while sources are read; those of a corpus that is refused do not stay.
    assert data_files(bank) == before
    with pytest.raises(InputError, match="--max-rejects"):
        build(corpus, bank.with_name("new"), tiny_llama, max_rejects=limit)
    assert data_files(bank.with_name("new")) == {}


def test_nothing_to_compile_is_an_input_error(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(InputError, match="nothing to compile"):
        build(tmp_path / "blank.txt", tmp_path / "bank", tiny_llama)


def test_another_model_is_refused_unless_rebuilding(bank: Path, corpus: Path, tmp_path: Path) -> None:
    from models import save_tiny_model

    other = save_tiny_model(tmp_path / "other", seed=7)
    with pytest.raises(MismatchError, match="another model"):
        again(corpus, bank, other)
    assert build(corpus, bank, other, rebuild=True).version == 2


def test_another_option_is_refused_unless_rebuilding(bank: Path, corpus: Path, tiny_llama: Path) -> None:
    with pytest.raises(MismatchError, match="--sparse-tokens"):
        again(corpus, bank, tiny_llama, sparse_tokens="4")
    result = build(corpus, bank, tiny_llama, sparse_tokens="4", rebuild=True)
    assert describe(result.manifest)["model"]["sparse_tokens"] == 4


def test_standard_input_is_a_source(tmp_path: Path, tiny_llama: Path) -> None:
    lines = "".join(json.dumps({"text": sentence(i), "name": f"n{i}", "lang": "en"}) + "\n" for i in range(9))
    result = build_module.compile_bank(
        ["-"],
        tmp_path / "bank",
        CompileOptions(model=str(tiny_llama), id_field="name", keep_fields=("lang",)),
        RunOptions(),
        standard_input=io.BytesIO(lines.encode()),
    )
    assert describe(result.manifest)["documents"] == 9
    with open_bank(tmp_path / "bank") as bank:
        row = bank.files.shards[0].document(3)
    assert (row.id, row.source, json.loads(row.metadata)) == ("n3", "-", {"lang": "en"})


def test_titles_are_part_of_the_reference_within_its_limit(
    corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    long = "\n\n".join(" ".join(sentence(900 + 8 * i + j) for j in range(8)) for i in range(4))
    (corpus / "guide.md").write_text(f"# Guide\n\n## Part\n\n{long}\n", encoding="utf-8")
    build(corpus, tmp_path / "bank", tiny_llama, title=True)
    with open_bank(tmp_path / "bank") as bank:
        chunks = [chunk for shard in bank.files.shards for chunk in shard.chunks()]
    titled = [chunk for chunk in chunks if chunk.title]
    assert any(chunk.title == "Guide > Part" for chunk in titled)
    assert all(chunk.tokens <= 128 for chunk in chunks)


def test_near_duplicates_are_left_out_and_counted(
    built: Path, corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    pytest.importorskip("datasketch", reason="needs the near-duplicates extra")
    text = (corpus / "00.txt").read_text(encoding="utf-8")
    (corpus / "almost-00.txt").write_text(text.replace("number 3.", "number three."), encoding="utf-8")
    near = build(corpus, tmp_path / "near", tiny_llama, near_duplicates=0.7)
    facts = describe(near.manifest)
    assert facts["near_duplicates"] >= 1
    assert facts["chunks"] + facts["near_duplicates"] >= describe(read_manifest(built))["chunks"]


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="modle"):
        compile_bank("corpus", tmp_path / "bank", modle="x")


def test_errors_of_the_codec_are_measured_on_references_it_was_not_trained_on(
    corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    exact = build(corpus, tmp_path / "none", tiny_llama, codec="none", dtype="float32").manifest.codec
    coarse = build(corpus, tmp_path / "sq4", tiny_llama, codec="SQ4", dtype="float32").manifest.codec
    fine = build(corpus, tmp_path / "sq8", tiny_llama, codec="SQ8", dtype="float32").manifest.codec
    assert exact["key_error"] < fine["key_error"] < coarse["key_error"] < 0.1
    assert exact["value_error"] < fine["value_error"] < coarse["value_error"] < 0.1
    assert np.isfinite([exact["key_error"], exact["value_error"]]).all()


def test_ids_that_are_given_twice_count_as_rejects(tmp_path: Path, tiny_llama: Path) -> None:
    source = tmp_path / "twice.jsonl"
    source.write_text(
        "".join(json.dumps({"text": sentence(i), "name": f"n{i % 6}"}) + "\n" for i in range(9)),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match="3 of 9 records rejected"):
        build(source, tmp_path / "bank", tiny_llama, id_field="name")
    facts = describe(
        build(source, tmp_path / "bank", tiny_llama, id_field="name", max_rejects="50%").manifest
    )
    assert (facts["documents"], facts["rejects"]) == (6, 3)


def test_a_codec_of_another_bank_is_refused_where_the_bank_has_its_own(
    corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    build(corpus, tmp_path / "bank", tiny_llama, codec="SQ8")
    (corpus / "more.txt").write_text(" ".join(sentence(5000 + i) for i in range(99)), encoding="utf-8")
    build(corpus, tmp_path / "other", tiny_llama, codec="SQ8")
    with pytest.raises(MismatchError, match="--codec-from"):
        build(corpus, tmp_path / "bank", tiny_llama, codec_from=str(tmp_path / "other"))
    taken = build(corpus, tmp_path / "bank", tiny_llama, codec_from=str(tmp_path / "other"), rebuild=True)
    ours, theirs = taken.manifest.files.codec, read_manifest(tmp_path / "other").files.codec
    assert ours is not None
    assert ours == theirs


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": "OPQ3_16,PQ3x8"},
        {"codec": "LSQ8x8"},
        {"index": "LSH"},
        {"codec_from": "no-such-bank"},
        {"embedder_from": "no-such-bank"},
        {"select": "best"},
        {"memory_layers": "9"},
        {"reference_tokens": 4},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused_before_anything_is_read(
    wrong: dict[str, Any], corpus: Path, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "CorpusReading", lambda *_: pytest.fail("the corpus was read"))
    with pytest.raises(UsageError):
        build(corpus, tmp_path / "bank", tiny_llama, **wrong)


def test_auto_is_the_codec_that_memory3_json_names_if_it_names_one(
    corpus: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    (model / "memory3.json").write_text('{"codec": "PQ4x4"}', encoding="utf-8")
    built = again(corpus, tmp_path / "bank", model)
    assert built.manifest.codec["spec"] == "PQ4x4"
    plan = plan_build([str(corpus)], None, CompileOptions(model=str(model)), RunOptions())
    assert plan.codec == "PQ4x4"
    # Said again or not, it is no other option than the bank has.
    assert not again(corpus, tmp_path / "bank", model).changed
    assert again(corpus, tmp_path / "other", model, codec="SQ8").manifest.codec["spec"] == "SQ8"
    (model / "memory3.json").write_text('{"codec": "PQ3x4"}', encoding="utf-8")
    with pytest.raises(UsageError, match="PQ3x4"):
        again(corpus, tmp_path / "third", model)


def test_an_index_that_the_vectors_cannot_have_is_refused_before_anything_is_done(
    corpus: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    with pytest.raises(UsageError, match="512 dimensions cannot be divided into 7 equal parts"):
        build(corpus, tmp_path / "bank", tiny_llama, index="IVF2,PQ7")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(("index", "only_small"), [("auto", True), ("HNSW4", False)])
def test_recall_is_measured_on_small_parts_unless_their_size_makes_a_difference(
    index: str,
    only_small: bool,
    corpus: Path,
    tmp_path: Path,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[int] = []
    original = vector_stage.open_part

    def open_part(state: Any, buffer: Any, rows: int) -> Any:
        opened.append(rows)
        return original(state, buffer, rows)

    monkeypatch.setattr(vector_stage, "open_part", open_part)
    sizes = sorted(shard.rows for shard in build(corpus, tmp_path / "first", tiny_llama).manifest.shards)
    assert sorted(opened) == sizes, "a small bank is measured whole"
    monkeypatch.setattr(vector_stage, "RECALL_PART_ROWS", sizes[-1] - 1)
    opened.clear()
    result = build(corpus, tmp_path / "second", tiny_llama, index=index)
    assert sorted(opened) == ([rows for rows in sizes if rows < sizes[-1]] if only_small else sizes)
    assert opened
    assert result.manifest.index["recall"] > 0.9
