"""Cold start: what is made at first retrieval is what a build would have stored, and becomes a version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_model, tiny_tokenizer
from small_corpus import build, data_files, write_corpus

import m3build
from m3build.bank import Bank, open_bank
from m3build.cold import ColdMemories, Place, WarmMemory
from m3build.deep_verify import verify_deep
from m3build.model.live import loaded_from
from m3build.persist import persist
from m3build_cli.diff_text import describe_difference
from m3build_cli.main import run
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import BusyError, MismatchError, UsageError
from m3build_formats.verify import verify

# Each stands in one shard alone.
PLACES: list[Place] = [(3, 3), (3, 1), (4, 0), (6, 2)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("cold") / "corpus")


@pytest.fixture(scope="module")
def made(corpus: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bank of text only and one that was warm from the start, both unquantized; not to be written to."""
    place = tmp_path_factory.mktemp("banks")
    for name, options in (("cold", {"text_only": True}), ("warm", {})):
        build(corpus, place / name, tiny_llama, dtype="float32", codec="none", **options)
    return place


@pytest.fixture
def cold(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "cold", tmp_path / "cold"))


@pytest.fixture(scope="module")
def live(made: Path) -> Any:
    return loaded_from(tiny_model("llama"), tiny_tokenizer(), read_manifest(made / "cold"))


@pytest.fixture
def bank(cold: Path) -> Iterator[Bank]:
    with open_bank(cold) as opened:
        yield opened


def encode(bank: Bank, live: Any, places: list[Place]) -> dict[Place, WarmMemory]:
    with ColdMemories(bank, live) as memories:
        made = memories.encode(places)
    return {place: made[number] for number, place in enumerate(places)}


def stored(path: Path, places: list[Place]) -> list[bytes]:
    """The memory rows of a bank, as they lie on disk."""
    with open_bank(path) as opened:
        return [opened.files.shards[shard].memories([row]).tobytes() for shard, row in places]


def test_a_bank_of_text_only_has_all_but_memories(made: Path) -> None:
    cold, warm = read_manifest(made / "cold"), read_manifest(made / "warm")
    assert cold.cold == cold.rows == warm.rows
    assert warm.cold == 0
    assert all(shard.memories is None for shard in cold.shards)
    assert cold.model == warm.model
    for mine, theirs in zip(cold.shards, warm.shards, strict=True):
        assert (mine.chunks, mine.embeddings, mine.index) == (theirs.chunks, theirs.embeddings, theirs.index)
    assert not verify(made / "cold").problems
    with open_bank(made / "cold") as opened, open_bank(made / "warm") as other:
        hits = opened.search(["what is a shard index"], k=3)
        assert hits.ids == other.search(["what is a shard index"], k=3).ids
        assert opened.show(hits.ids[0][0]).kept is None
        assert opened.cold(PLACES).tolist() == [True] * 4
        assert other.cold(PLACES).tolist() == [False] * 4


def test_memories_made_at_first_retrieval_are_those_of_a_warm_build(
    cold: Path, made: Path, bank: Bank, live: Any
) -> None:
    result = persist(cold, bank, live, encode(bank, live, PLACES))
    assert (result.version, result.written, result.known, result.gone) == (2, 4, 0, 0)
    assert stored(cold, PLACES) == stored(made / "warm", PLACES)
    assert not verify(cold).problems
    manifest = read_manifest(cold)
    assert (manifest.operation, manifest.cold) == ("persist", manifest.rows - 4)
    with open_bank(cold) as opened:
        assert opened.cold([*PLACES, (0, 0), (1, 0)]).tolist() == [False] * 4 + [True] * 2
    warm = {number for number, shard in enumerate(manifest.shards) if shard.memories is not None}
    assert warm == {3, 4, 6}
    deep = verify_deep(cold, device="cpu")
    assert (deep.compared, deep.exact, deep.bytes_expected) == (4, 4, True)


def test_reading_a_row_without_a_memory_names_it(cold: Path, bank: Bank, live: Any) -> None:
    memories = encode(bank, live, PLACES)
    ids = [bank.files.shards[shard].chunk_id(row).hex() for shard, row in PLACES]
    with pytest.raises(MismatchError, match="holds no memories"):
        bank.read(ids)
    persist(cold, bank, live, {place: memories[place] for place in PLACES[:3]})
    with open_bank(cold) as opened:
        read = opened.read(ids[:3], device="cpu")
        for number, place in enumerate(PLACES[:3]):
            heads = read.keys[number].flatten(0, 1)
            assert torch.equal(heads, memories[place].keys.bfloat16().float())
        for missing in (ids[3], opened.files.shards[3].chunk_id(0).hex()):
            with pytest.raises(MismatchError, match=f"chunk {missing[:12]} has no memory yet") as error:
                opened.read([*ids[:3], missing])
            assert error.value.exit_code == 4


def test_once_all_are_warm_the_bank_is_the_warm_one(cold: Path, made: Path, bank: Bank, live: Any) -> None:
    everything = [
        (number, row) for number, shard in enumerate(bank.files.shards) for row in range(shard.rows)
    ]
    half = len(everything) // 2
    persist(cold, bank, live, encode(bank, live, everything[:half]))
    result = persist(cold, bank, live, encode(bank, live, everything[half:]))
    assert result.manifest.cold == 0
    assert result.manifest.shards == read_manifest(made / "warm").shards
    assert result.manifest.code_key == read_manifest(made / "warm").code_key


def test_a_reference_in_several_shards_becomes_warm_in_all(cold: Path, bank: Bank, live: Any) -> None:
    twice = next(
        places
        for shard in bank.files.shards
        for chunk in shard.chunks()
        if len(places := [(p.shard, p.row) for p in bank.files.find(chunk.id.hex())]) > 1
    )
    assert persist(cold, bank, live, encode(bank, live, twice[:1])).written == len(twice)
    with open_bank(cold) as opened:
        assert not opened.cold(twice).any()


def test_the_model_may_run_under_autocast_and_inference_mode(
    cold: Path, made: Path, bank: Bank, live: Any
) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        memories = encode(bank, live, PLACES)
    assert not memories[PLACES[0]].keys.is_inference()
    persist(cold, bank, live, memories)
    assert stored(cold, PLACES) == stored(made / "warm", PLACES)


def test_arrays_will_do_for_tensors(cold: Path, made: Path, bank: Bank, live: Any) -> None:
    arrays: Any = {
        place: tuple(np.asarray(part) for part in memory)
        for place, memory in encode(bank, live, PLACES).items()
    }
    persist(cold, bank, live, arrays)
    assert stored(cold, PLACES) == stored(made / "warm", PLACES)


def test_what_is_known_already_makes_no_version(cold: Path, bank: Bank, live: Any) -> None:
    memories = encode(bank, live, PLACES)
    assert persist(cold, bank, live, memories).version == 2
    again = persist(cold, bank, live, memories)
    assert (again.version, again.written, again.known) == (2, 0, 4)
    assert persist(cold, bank, live, {}).version == 2
    assert list_versions(cold) == [1, 2]


def test_a_memory_of_another_shape_is_refused(cold: Path, bank: Bank, live: Any) -> None:
    keys, values, positions = encode(bank, live, PLACES[:1])[PLACES[0]]
    with pytest.raises(ValueError, match="keys"):
        persist(cold, bank, live, {PLACES[0]: WarmMemory(keys[:2], values, positions)})
    with pytest.raises(ValueError, match="at least one token"):
        persist(cold, bank, live, {PLACES[0]: WarmMemory(keys, values, torch.full_like(positions, 255))})
    assert list_versions(cold) == [1]


def test_another_tokenizer_is_found_out_by_the_chunk_it_cuts_otherwise(bank: Bank, live: Any) -> None:
    from dataclasses import replace

    other = tiny_tokenizer()
    other.add_tokens(["memory"])
    with pytest.raises(MismatchError, match="it is another tokenizer"):
        encode(bank, replace(live, tokenizer=other), PLACES)


class TestWhenTheBankMovedOn:
    """Another version was committed after the reader opened its own."""

    def test_the_new_version_is_built_upon(
        self, cold: Path, made: Path, bank: Bank, live: Any, corpus: Path, tiny_llama: Path, tmp_path: Path
    ) -> None:
        memories = encode(bank, live, PLACES)
        ids = [bank.files.shards[shard].chunk_id(row) for shard, row in PLACES]
        changed = Path(shutil.copytree(corpus, tmp_path / "changed"))
        first = bank.files.shards[3].chunk(1).occurrences[0].document
        (changed / first).unlink()
        (changed / "new.txt").write_text("Quite another text, about nothing of the kind.", encoding="utf-8")
        build(changed, cold, tiny_llama)
        result = persist(cold, bank, live, memories)
        with open_bank(cold) as opened:
            there = opened.files.locate(ids)
            assert 0 < len(there) == result.written < 4
            assert (result.version, result.gone) == (3, 4 - len(there))
            rows = {key: opened.files.shards[p.shard].memories([p.row]).tobytes() for key, p in there.items()}
        for key, row in zip(ids, stored(made / "warm", PLACES), strict=True):
            assert key not in rows or rows[key] == row
        assert not verify(cold).problems

    def test_one_of_other_memories_is_refused(
        self, cold: Path, bank: Bank, live: Any, corpus: Path, tiny_llama: Path
    ) -> None:
        memories = encode(bank, live, PLACES)
        build(corpus, cold, tiny_llama, sparse_tokens="4", rebuild=True)
        with pytest.raises(MismatchError, match=r"version 2.* another memory\.sparse_tokens: open the bank"):
            persist(cold, bank, live, memories)

    def test_a_writer_at_work_is_busy(self, cold: Path, bank: Bank, live: Any) -> None:
        memories = encode(bank, live, PLACES)
        with BankWriter(cold), pytest.raises(BusyError, match="is writing this bank"):
            persist(cold, bank, live, memories, wait_seconds=0)


class TestWhatCannotStandBesideStoredMemories:
    """Bits that another number type, device or codec gives are not mixed into a bank."""

    def test_another_number_type(self, cold: Path, bank: Bank) -> None:
        half = loaded_from(tiny_model("llama").bfloat16(), tiny_tokenizer(), bank.manifest)
        with pytest.raises(
            MismatchError, match=r"float32, the model runs in bfloat16.* load the model in float32"
        ):
            persist(cold, bank, half, encode(bank, half, PLACES))

    def test_another_device(self, cold: Path, bank: Bank, live: Any) -> None:
        persist(cold, bank, live, encode(bank, live, PLACES[:2]))
        with BankWriter(cold) as writer:
            from dataclasses import replace

            base = writer.current()
            assert base is not None
            writer.commit(replace(base.contents, model={**base.model, "device": "cuda"}), base)
        with pytest.raises(MismatchError, match="made on cuda, these on cpu"):
            persist(cold, bank, live, encode(bank, live, PLACES[2:]))


class TestTheCodec:
    """The codec of a bank of text only: taken over, or settled by its first memories."""

    @pytest.fixture(scope="class")
    def quantized(self, corpus: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("quantized") / "bank"
        build(corpus, path, tiny_llama, dtype="float32", codec="PQ4x4")
        return path

    def test_one_taken_over_gives_the_codes_of_its_bank(
        self, corpus: Path, tiny_llama: Path, tmp_path: Path, quantized: Path, live: Any
    ) -> None:
        path = tmp_path / "bank"
        build(corpus, path, tiny_llama, dtype="float32", text_only=True, codec_from=str(quantized))
        assert read_manifest(path).files.codec == read_manifest(quantized).files.codec
        with open_bank(path) as opened:
            persist(path, opened, live, encode(opened, live, PLACES))
        assert stored(path, PLACES) == stored(quantized, PLACES)
        assert read_manifest(path).code_key == read_manifest(quantized).code_key
        result = build(corpus, path, tiny_llama, text_only=False)
        assert result.reused + result.encoded + result.repeated == result.manifest.rows
        assert result.reused >= 4
        assert result.manifest.shards == read_manifest(quantized).shards

    def test_the_first_memories_train_it_and_it_stays(
        self, corpus: Path, tiny_llama: Path, tmp_path: Path, live: Any
    ) -> None:
        path = tmp_path / "bank"
        build(corpus, path, tiny_llama, dtype="float32", text_only=True, codec="PQ4x4")
        assert read_manifest(path).codec["spec"] == "none"
        with open_bank(path) as opened:
            places = [(number, row) for number in range(1, 10) for row in range(8)]
            persist(path, opened, live, encode(opened, live, places))
            first = read_manifest(path)
            assert (first.codec["spec"], first.codec["trained_on"]) == ("PQ4x4", {"references": 58})
            assert 0 < first.codec["key_error"] < 1
            assert first.files.codec is not None
            persist(path, opened, live, encode(opened, live, [(10, 0)]))
        second = read_manifest(path)
        assert (second.files.codec, second.code_key) == (first.files.codec, first.code_key)
        assert not verify(path).problems
        deep = verify_deep(path, device="cpu", sample=8)
        assert (deep.compared, deep.exact) == (8, 8)
        result = build(corpus, path, tiny_llama, text_only=False)
        assert result.manifest.files.codec == first.files.codec
        assert any("--retrain" in note for note in result.notes)

    def test_auto_is_what_it_was_to_the_build_whoever_writes_the_first_memories(
        self, corpus: Path, tiny_llama: Path, tmp_path: Path, live: Any
    ) -> None:
        model, path = tmp_path / "model", tmp_path / "bank"
        shutil.copytree(tiny_llama, model)
        (model / "memory3.json").write_text('{"codec": "PQ4x4"}', encoding="utf-8")
        build(corpus, path, model, dtype="float32", text_only=True, codec="auto")
        assert (read_manifest(path).codec["spec"], read_manifest(path).codec["wanted"]) == ("none", "PQ4x4")
        with open_bank(path) as opened:
            # Too few to train on at first, which changes nothing about what is wanted.
            persist(path, opened, live, encode(opened, live, PLACES))
            assert read_manifest(path).codec["wanted"] == "PQ4x4"
        assert not build(corpus, path, model).changed
        build(corpus, tmp_path / "other", model, dtype="float32", text_only=True, codec="auto")
        with open_bank(tmp_path / "other") as opened:
            places = [(number, row) for number in range(1, 10) for row in range(8)]
            persist(tmp_path / "other", opened, live, encode(opened, live, places))
        codec = read_manifest(tmp_path / "other").codec
        assert codec["spec"] == "PQ4x4"
        assert "wanted" not in codec
        # Taken over it is a codec that is there, and no wish.
        taken = build(corpus, tmp_path / "third", tiny_llama, dtype="float32", codec_from=str(path))
        assert "wanted" not in taken.manifest.codec

    def test_none_is_settled_by_the_first_memories_however_it_was_asked_for(
        self, corpus: Path, tiny_llama: Path, tmp_path: Path, live: Any
    ) -> None:
        model, path, own = tmp_path / "model", tmp_path / "bank", tmp_path / "corpus"
        shutil.copytree(tiny_llama, model)
        shutil.copytree(corpus, own)
        (model / "memory3.json").write_text('{"codec": "none"}', encoding="utf-8")
        build(own, path, model, dtype="float32", text_only=True, codec="auto")
        with open_bank(path) as opened:
            persist(path, opened, live, encode(opened, live, PLACES))
        stored = read_manifest(path)
        (own / "more.txt").write_text("One more text, so that there is something to build.", encoding="utf-8")
        again = build(own, path, model)
        assert again.changed
        assert again.manifest.codec == stored.codec

    def test_too_few_for_one_are_stored_unquantized_until_the_bank_is_warmed(
        self, corpus: Path, tiny_llama: Path, tmp_path: Path, live: Any, quantized: Path
    ) -> None:
        path = tmp_path / "bank"
        build(corpus, path, tiny_llama, dtype="float32", text_only=True, codec="PQ4x4")
        with open_bank(path) as opened:
            result = persist(path, opened, live, encode(opened, live, PLACES))
        assert result.manifest.codec["spec"] == "none"
        assert any("unquantized" in note for note in result.notes)
        again = build(corpus, path, tiny_llama)
        assert not again.changed
        assert (again.manifest.codec["spec"], again.manifest.cold) == ("none", again.manifest.rows - 4)
        warmed, fresh = build(corpus, path, tiny_llama, text_only=False).manifest, read_manifest(quantized)
        assert (warmed.shards, warmed.files, warmed.codec) == (fresh.shards, fresh.files, fresh.codec)


class TestCompilingAgain:
    """What a build makes of a bank of text only that is warm in part."""

    def test_warm_rows_stay_warm_through_an_edit(
        self, cold: Path, made: Path, bank: Bank, live: Any, corpus: Path, tiny_llama: Path, tmp_path: Path
    ) -> None:
        persist(cold, bank, live, encode(bank, live, PLACES))
        assert not build(corpus, cold, tiny_llama).changed
        edited = Path(shutil.copytree(corpus, tmp_path / "edited"))
        (edited / "000.txt").write_text("A text that comes before all others in this bank.", encoding="utf-8")
        result = build(edited, cold, tiny_llama)
        assert (result.encoded, result.reused) == (0, 4)
        assert result.manifest.cold == result.manifest.rows - 4
        ids = [bank.files.shards[shard].chunk_id(row) for shard, row in PLACES]
        with open_bank(cold) as opened:
            there = opened.files.locate(ids)
            rows = [opened.files.shards[there[k].shard].memories([there[k].row]).tobytes() for k in ids]
        assert rows == stored(made / "warm", PLACES)
        assert not verify(cold).problems

    def test_warming_encodes_only_what_is_cold_and_gives_the_warm_bank(
        self, cold: Path, made: Path, bank: Bank, live: Any, corpus: Path, tiny_llama: Path
    ) -> None:
        persist(cold, bank, live, encode(bank, live, PLACES))
        result = build(corpus, cold, tiny_llama, text_only=False)
        warm = read_manifest(made / "warm")
        assert (result.manifest.cold, result.reused) == (0, 4)
        assert result.manifest.shards == warm.shards
        assert result.manifest.files == warm.files
        assert data_files(made / "warm").items() <= data_files(cold).items()
        assert not build(corpus, cold, tiny_llama).changed

    def test_the_way_back_takes_rebuild(
        self, made: Path, corpus: Path, tiny_llama: Path, tmp_path: Path
    ) -> None:
        path = Path(shutil.copytree(made / "warm", tmp_path / "warm"))
        with pytest.raises(MismatchError, match="--text-only is False in the bank"):
            build(corpus, path, tiny_llama, text_only=True)
        result = build(corpus, path, tiny_llama, text_only=True, rebuild=True)
        assert result.manifest.cold == result.manifest.rows
        assert result.manifest.shards == read_manifest(made / "cold").shards


class TestOtherCommands:
    """What looks at banks or moves them about takes cold rows as they are."""

    def test_the_difference_is_what_became_warm(self, cold: Path, bank: Bank, live: Any) -> None:
        persist(cold, bank, live, encode(bank, live, PLACES))
        persist(cold, bank, live, encode(bank, live, [(3, 0)]))
        for before in (1, 2):
            found = m3build.diff(f"{cold}@{before}", f"{cold}@3")
            assert found.chunks.encoded_anew == 0
            assert found.after.facts["cold"] < found.before.facts["cold"] if found.before else False
            assert "| chunks without a memory yet |" in describe_difference(found, 3)

    def test_a_rollback_makes_them_cold_again_and_gc_removes_their_files(
        self, cold: Path, bank: Bank, live: Any
    ) -> None:
        persist(cold, bank, live, encode(bank, live, PLACES))
        m3build.rollback(cold, 1)
        assert read_manifest(cold).cold == read_manifest(cold).rows
        m3build.gc(cold, keep=1, grace=0)
        assert list_versions(cold) == [3]
        assert not [path for path in (cold / "data").iterdir() if ".memories." in path.name]
        assert not verify(cold).problems

    def test_banks_of_text_only_are_merged_with_what_is_warm(
        self, cold: Path, made: Path, bank: Bank, live: Any, tiny_llama: Path, tmp_path: Path
    ) -> None:
        persist(cold, bank, live, encode(bank, live, PLACES))
        more = tmp_path / "more"
        more.mkdir()
        (more / "another.txt").write_text("Another text of a bank that is merged.", encoding="utf-8")
        build(more, tmp_path / "other", tiny_llama, dtype="float32", codec="none", text_only=True)
        result = m3build.merge([cold, tmp_path / "other"], tmp_path / "all")
        assert (result.copied, result.manifest.cold) == (4, result.manifest.rows - 4)
        assert not verify(tmp_path / "all").problems
        ids = [bank.files.shards[shard].chunk_id(row) for shard, row in PLACES]
        with open_bank(tmp_path / "all") as opened:
            there = opened.files.locate(ids)
            rows = [opened.files.shards[there[k].shard].memories([there[k].row]).tobytes() for k in ids]
            assert opened.search(["another text"], k=1).texts == [["Another text of a bank that is merged."]]
        assert rows == stored(made / "warm", PLACES)
        assert result.manifest.sources["settings"]["text_only"] is True

    def test_people_are_told(
        self, cold: Path, bank: Bank, live: Any, capsys: pytest.CaptureFixture[str], corpus: Path
    ) -> None:
        def told(*arguments: str) -> str:
            with pytest.raises(SystemExit) as ended:
                run(list(arguments))
            assert ended.value.code == 0
            return capsys.readouterr().out

        (identity,) = bank.search(["number"], k=1).ids[0]
        assert "text only: memories are made at first retrieval" in told("info", str(cold))
        assert "kept     this chunk has no memory yet" in told("show", str(cold), identity)
        assert json.loads(told("show", str(cold), identity, "--json"))["kept"] == []
        assert "no chunk has a memory yet" in told("verify", str(cold), "--deep", "--device", "cpu")
        plan = told("compile", str(corpus), "-o", str(cold), "--plan")
        assert "bank: text, embeddings, index; no memories yet" in plan
        assert "encode" not in plan
        persist(cold, bank, live, encode(bank, live, PLACES))
        facts = json.loads(told("info", str(cold), "--json"))
        assert facts["cold"] == facts["chunks"] - 4
        assert f"{facts['cold']:,} of {facts['chunks']:,} chunks have no memory yet" in told(
            "info", str(cold)
        )


def test_a_bank_without_a_version_is_refused(tmp_path: Path, bank: Bank, live: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no version yet"):
        persist(tmp_path / "empty", bank, live, encode(bank, live, PLACES[:1]))
