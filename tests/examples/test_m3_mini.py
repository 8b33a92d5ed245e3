"""m3-mini's corpus, tokenizer and first weights: the parts that need no packages and no network."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from random import Random

import pytest
import torch
from models import save_tiny_model as make_model_directory
from safetensors.torch import save_file

import m3build
from examples.m3_mini import ablation, ship
from examples.m3_mini.corpus import Unrepeated, described, docstrings, drawn, plain, unframed
from examples.m3_mini.facts import make_facts, rate, score
from examples.m3_mini.measure import main
from examples.m3_mini.model import make_model, make_tokenizer, texts
from examples.m3_mini.packages import HELD_OUT, TRAINING
from m3build.chunking.near_duplicates import NearDuplicates
from m3build.model.causal import load_causal_model


def prose(seed: int, words: int) -> str:
    random = Random(seed)
    return " ".join("".join(random.choices("abcdefghij", k=6)) for _ in range(words))


def test_no_family_is_both_held_out_and_trained_on() -> None:
    assert {package.family for package in HELD_OUT} == {"postgresql", "git"}
    assert not {package.family for package in HELD_OUT} & {package.family for package in TRAINING}
    assert not {package.name for package in HELD_OUT} & {package.name for package in TRAINING}


def test_a_paragraph_stands_once_in_the_corpus_and_short_ones_stay(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    licence, first, second = prose(1, 30), prose(2, 90), prose(3, 90)
    with NearDuplicates(0.8, tmp_path) as near:
        unrepeated = Unrepeated(near)
        assert unrepeated.rest("a", f"{licence}\n\nNOTES\n\n{first}") == f"{licence}\n\nNOTES\n\n{first}"
        # Spaces and line breaks make no difference.
        again = licence.replace(" ", "\n ", 3)
        assert unrepeated.rest("b", f"{again}\n\nNOTES\n\n{second}") == f"NOTES\n\n{second}"
        assert unrepeated.rest("c", f"{licence}\n\nNOTES\n\nshort") is None


def test_a_document_nearly_like_an_earlier_one_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    text = prose(1, 200)
    with NearDuplicates(0.8, tmp_path) as near:
        unrepeated = Unrepeated(near)
        assert unrepeated.rest("a", text) == text
        assert unrepeated.rest("b", f"{text} changed") is None
        assert unrepeated.rest("c", prose(2, 200)) == prose(2, 200)


def test_what_frames_the_pages_of_a_family_goes_and_what_stands_within_stays() -> None:
    pages = [
        (str(number), f"Home\n\nNext\n\nbody {number}\n\nNext\n\nend {number}\n\nHome")
        for number in range(40)
    ]
    assert list(unframed(pages))[7] == ("7", "body 7\n\nNext\n\nend 7")
    # A page of frame alone has nothing to keep.
    assert len(list(unframed([*pages, ("bare", "Home\n\nNext")]))) == 40


def test_rendered_pages_lose_what_only_fills_the_line() -> None:
    assert (
        plain(f"LS(1){' ' * 300}LS(1)\n{'_' * 100}\n       indented  text")
        == "LS(1)  LS(1)\n\n       indented  text"
    )


def test_docstrings_stand_below_their_names(tmp_path: Path) -> None:
    source = '"""Top."""\nclass A:\n  """Of A."""\n  def f(self, x=1):\n    """Of f."""\ndef bare(): pass\n'
    assert list(described(ast.parse(source), "package.module")) == [
        "package.module\nTop.",
        "A\nOf A.",
        "A.f(self, x=1)\nOf f.",
    ]
    for place in ("package/module.py", "test/left_out.py"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text(source, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    assert [name for name, _ in docstrings(tmp_path)] == ["cpython/package/module"]


def test_the_draw_depends_on_ids_alone_and_keeps_to_its_limit() -> None:
    documents = [(str(number), "x" * (number % 7 + 1)) for number in range(100)]
    kept = drawn(documents, 50)
    assert kept == drawn(documents[::-1], 50)
    assert 44 <= sum(len(text) for _, text in kept) <= 50
    assert drawn(documents, 10_000) != documents
    assert sorted(drawn(documents, 10_000)) == sorted(documents)


def test_the_tokenizer_encodes_any_text_and_digits_one_by_one(tmp_path: Path) -> None:
    corpus = tmp_path / "train.jsonl"
    lines = [
        {"id": str(number), "text": f"{family} {prose(number, 40)}", "family": family}
        for family in ("large", "small")
        for number in range(30 if family == "large" else 2)
    ]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    # A family gives no more than its share.
    assert sum(text.startswith("large") for text in texts(corpus, 1000)) < 10
    tokenizer = make_tokenizer(texts(corpus, 1000), 400)
    text = "\t def 中文 日本語 😀 ünï\r\n\x00 end"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) == 400
    assert tokenizer.bos_token_id == 0
    assert len(tokenizer.encode("20261128", add_special_tokens=False)) == 8


def test_the_model_has_the_size_and_proportions_it_is_to_have() -> None:
    model = make_model()
    config = model.config
    assert 4_000_000 < model.num_parameters() < 13_000_000
    assert config.tie_word_embeddings
    assert config.max_position_embeddings >= 1024
    assert config.num_key_value_heads < config.num_attention_heads <= config.num_hidden_layers


def test_facts_are_made_up_and_none_tells_of_another() -> None:
    facts = make_facts(50)
    assert facts == make_facts(50)
    assert len({fact.function for fact in facts}) == len({fact.value for fact in facts}) == 50
    for fact in facts:
        assert f"{fact.function}() returns {fact.value}." in fact.document
        assert fact.value not in fact.prompt
        assert fact.prompt.endswith(f"{fact.function}() returns")
        assert sum(fact.value in other.document for other in facts) == 1


def test_held_out_families_and_planted_facts_are_measured_by_one_command(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for name, families in (("train", ["python"]), ("held-out", ["git", "postgresql"])):
        records = [
            {"id": f"{family}/{number}", "text": prose(number, 130), "family": family}
            for family in families
            for number in range(12)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (corpus / f"{name}.jsonl").write_text(text, encoding="utf-8")
    model = make_model_directory(tmp_path / "model", "llama")
    arguments = [str(model), str(corpus), str(out), "--tokens=1000", "--facts=3", "--device=cpu"]
    arguments += ["--windows=64,128", f"--control={model}", "--dtype=float32"]
    main.main(arguments, standalone_mode=False)

    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert list(figures["windows"]) == ["64", "128"]
    families = figures["windows"]["64"]
    assert list(families) == list(figures["beyond"]) == ["git", "postgresql"]
    with m3build.open_bank(out / "bank") as bank:
        assert figures["references"] == bank.files.rows
        held = {
            occurrence
            for shard in bank.files.shards
            for row in shard.chunks()
            for occurrence in row.occurrences
        }
    in_bank = {occurrence.document for occurrence in held}
    tested = set()
    for family in families:
        lines = (out / f"{family}.jsonl").read_text(encoding="utf-8").splitlines()
        tested |= {json.loads(line)["id"] for line in lines}
        assert 0 < families[family]["documents"] <= len(lines)
        # The model as its own control; of random weights no memory of what came before is worth anything.
        assert families[family]["control"]["loss"] == pytest.approx(families[family]["none"]["plain"])
        assert abs(figures["beyond"][family]["gain: earlier"]["mean"]) < 0.1
    # What is under test is not in the bank; all the rest is.
    assert not tested & in_bank
    assert len(tested | in_bank) == 36 + 3
    assert sum(name.startswith("planted/") for name in in_bank) == 3

    # Random weights complete nothing; the loss is about that of an even guess.
    facts = figures["facts"]
    assert facts["none"]["completed"]["mean"] == facts["memories"]["completed"]["mean"] == 0.0
    assert abs(facts["none"]["loss"]["mean"] - math.log(384)) < 0.5
    assert facts["gain"]["mean"] == pytest.approx(
        facts["none"]["loss"]["mean"] - facts["memories"]["loss"]["mean"]
    )
    assert 0.0 < facts["retrieved"]["mean"] <= 1.0
    table = (out / "tables.md").read_text(encoding="utf-8")
    assert "| | git | postgresql |" in table
    assert "memories of random references" in table


def test_what_ships_is_the_taught_model_in_bfloat16_with_its_card(tmp_path: Path) -> None:
    taught = make_model_directory(tmp_path / "taught", "llama")
    (taught / "memory3.json").write_text(json.dumps({"memory_layers": [1], "sparse_tokens": 16}))
    (taught / "losses.png").write_bytes(b"a picture")
    (taught / "log.jsonl").write_text(json.dumps({"stage": "with memory", "step": 1200}) + "\n")
    for name, text in (("sources.md", "| git |"), ("tables.md", "| gain |"), ("table.md", "| 8 tokens |")):
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    out = tmp_path / "m3-mini"
    options = [f"--{name}={tmp_path}" for name in ("corpus", "measured", "ablation")]
    ship.main([str(taught), str(out), *options], standalone_mode=False)
    given, shipped = (load_causal_model(str(path), dtype="float32") for path in (taught, out))
    assert load_causal_model(str(out), dtype="bfloat16").model.config.dtype == torch.bfloat16
    assert shipped.shape.memory_layers == (1,)
    assert shipped.shape.sparse_tokens == 16
    said = json.loads((out / "memory3.json").read_text())
    assert (said["codec"], said["continuations"]) == (ship.CODEC, ship.CONTINUATIONS)
    for own, theirs in zip(given.model.parameters(), shipped.model.parameters(), strict=True):
        assert torch.equal(own.bfloat16().float(), theirs)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "(with memory: 1,200 steps)" in card
    assert "$" not in card
    for text in ("| git |", "| gain |", "| 8 tokens |"):
        assert text in card


def test_variants_are_taught_from_one_checkpoint_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"id": str(n), "text": prose(n, 40)}) for n in range(16)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = make_model_directory(tmp_path / "model", "llama")
    taught = tmp_path / "taught"
    taught.mkdir()
    (taught / "calibration.json").write_text(json.dumps({"recommended": {"memory_layers": [1]}}))
    weights = dict(load_causal_model(str(model), dtype="float32").model.named_parameters())
    (taught / "checkpoint-warm-up").mkdir()
    save_file(weights, taught / "checkpoint-warm-up" / "weights.safetensors")
    monkeypatch.setattr(ablation, "VARIANTS", {"all": {}, "8 tokens": {"sparse_tokens": "8"}})
    arguments = [str(model), str(taught), str(tmp_path / "train.jsonl"), str(tmp_path / "out")]
    arguments += ["--steps=1", "--rows=2", "--context=65", "--documents=4"]
    ablation.main(arguments, standalone_mode=False)
    first, second = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in range(2))
    assert first["counts"] == second["counts"]
    # Both saw one step on the same text, but not the same memories.
    assert first["sums"]["plain"] != second["sums"]["plain"]
    assert sum(first["sums"]["plain"]) == pytest.approx(sum(second["sums"]["plain"]), rel=0.05)
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| 8 tokens | " in table
    (tmp_path / "out" / "1.json").unlink()
    kept = (tmp_path / "out" / "0.json").stat().st_mtime_ns
    ablation.main(arguments, standalone_mode=False)
    assert (tmp_path / "out" / "0.json").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "out" / "1.json").read_text()) == second


def test_a_share_has_an_interval_even_where_nothing_happened() -> None:
    # Wilson's interval of 0 and of 4 in 10, from tables.
    none, some = rate([False] * 10), rate([True] * 4 + [False] * 6)
    assert [none["low"], none["high"]] == pytest.approx([0.0, 0.2775], abs=1e-3)
    assert [some["mean"], some["low"], some["high"]] == pytest.approx([0.4, 0.1682, 0.6873], abs=1e-3)


def test_a_value_is_scored_as_the_whole_text_at_once_would_be(tmp_path: Path) -> None:
    model = load_causal_model(str(make_model_directory(tmp_path, "llama")), device="cpu", dtype="float32")
    [fact] = make_facts(1)
    _, loss, found = score(model, fact.prompt, fact.value)
    value = model.tokenizer.encode(f" {fact.value}", add_special_tokens=False)
    ids = [*model.bos, *model.tokenizer.encode(fact.prompt, add_special_tokens=False), *value]
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids])).logits[0, -len(value) - 1 : -1]
    assert loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, torch.tensor(value))), abs=1e-5
    )
    assert not found
