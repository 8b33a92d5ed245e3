"""The ways of an evaluation against a float64 transcription that shares no code with them: the trained
260K-parameter Llama on a few short stories, the same references."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reference.slow_memory import Weights, load, slow_memory
from reference.slow_reading import SlowMemory, kept, slow_logits, token_losses, whole

from m3build.api import compile as compile_bank
from m3build.api import evaluate
from m3build.bank import Bank, open_bank
from m3build.evaluation.held_out import HeldOut
from m3build.evaluation.losses import BOS, PLAIN, LossMeter
from m3build.evaluation.references import Reads, Reference, References
from m3build.evaluation.windows import windows_of
from m3build.model.whole import load_reading_model
from m3build_formats.bank import read_manifest

IN_BANK = 12
# Characters of each story of the bank, and of those held out: float64 in Python is slow.
IN_BANK_CHARACTERS = 120
HELD_OUT_CHARACTERS = (200, 260)
QUERY = 64


@dataclass(frozen=True)
class Place:
    bank: Path
    held_out: Path
    model: Path


@pytest.fixture(scope="module")
def place(outside_data: Path, stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A bank of stories, and some that are not in it."""
    import zstandard

    packed = (outside_data / "corpora" / "tinystories.jsonl.zst").open("rb")
    with packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8")
        lengths = [IN_BANK_CHARACTERS] * IN_BANK + list(HELD_OUT_CHARACTERS)
        cut = [json.dumps({"text": json.loads(next(lines))["text"][:length]}) for length in lengths]
    directory = tmp_path_factory.mktemp("stories")
    for name, some in (("bank", cut[:IN_BANK]), ("held-out", cut[IN_BANK:])):
        (directory / f"{name}.jsonl").write_text("\n".join(some), encoding="utf-8")
    compile_bank(
        directory / "bank.jsonl",
        directory / "bank",
        model=str(stories260k),
        dtype="float32",
        memory_layers="1,2,4",
    )
    return Place(directory / "bank", directory / "held-out.jsonl", stories260k)


class Slow:
    """The transcription with this model, bank and shape."""

    def __init__(self, meter: LossMeter, bank: Bank, model: Path) -> None:
        self.config: Any
        self.weights: Weights
        self.config, self.weights = load(model, "llama")
        self.bank, self.model = bank, model
        self.bos = list(meter.loaded.reference_bos_ids)
        self.layers = list(meter.loaded.shape.memory_layers)
        self.memories: dict[tuple[str, str], SlowMemory] = {}

    def memory(self, way: str, reference: Reference) -> SlowMemory:
        if (way, reference.id) not in self.memories:
            self.memories[way, reference.id] = self._memory(way, reference)
        return self.memories[way, reference.id]

    def _memory(self, way: str, reference: Reference) -> SlowMemory:
        ids = list(reference.ids)
        if way == "exact":
            return kept(slow_memory(self.model, "llama", self.bos, ids, self.layers, 8))
        if way == "dense":
            return whole(self.config, "llama", self.weights, self.bos, ids, self.layers)
        stored = self.bank.read([reference.id])
        parts = {}
        for place, layer in enumerate(stored.memory_layers):
            for head in range(stored.keys.shape[2]):
                used = stored.mask[0, place, head]
                parts[layer, head] = (
                    stored.keys[0, place, head][used].astype(np.float64),
                    stored.values[0, place, head][used].astype(np.float64),
                )
        return SlowMemory(parts)

    def read(self, ids: list[int], way: str, references: list[list[Reference]]) -> Any:
        chunks = [[self.memory(way, one) for one in some] for some in references]
        chunk_of = [min(i // QUERY, len(chunks) - 1) for i in range(len(ids))]
        return token_losses(
            slow_logits(self.config, "llama", self.weights, self.bos, ids, chunks, chunk_of), ids
        )

    def plain(self, ids: list[int]) -> Any:
        return token_losses(slow_logits(self.config, "llama", self.weights, [], ids, reference_tokens=0), ids)


def in_reading_order(references: list[Reference]) -> list[Reference]:
    """Runs of one shard's neighbouring rows as they stand there; the run of the best reference last."""
    runs: list[list[Reference]] = []
    for reference in references:
        for run in runs:
            if any((one.shard, one.row + 1) == (reference.shard, reference.row) for one in run):
                run.append(reference)
                run.sort(key=lambda one: one.row)
                break
        else:
            runs.append([reference])
    return [one for run in reversed(runs) for one in run]


def test_what_goes_on_from_a_reference_stands_behind_it() -> None:
    def order(*rows: int) -> list[int]:
        return [one.row for one in in_reading_order([Reference(str(row), 0, row, (), "") for row in rows])]

    def found(*rows: int) -> list[int]:
        meter: Any = SimpleNamespace(_start=(), _limit=None, loaded=SimpleNamespace(tokenizer=Numbers()))
        references = [Reference(str(row), 0, row, (), str(row)) for row in rows]
        row, number = LossMeter.with_text(meter, references, (99,))
        assert (row[-1], number) == (99, len(rows))
        return list(row[:-1])

    for rows in ((5, 6, 7), (5, 20, 6), (20, 5, 6), (3,), (9, 1, 10, 2, 30), (7, 6)):
        assert found(*rows) == order(*rows)
    assert found(5, 6, 20, 7) == [20, 5, 6, 7]


class Numbers:
    """A tokenizer of numbers."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(text)]


def slow_losses(slow: Slow, meter: LossMeter, read: Reads) -> dict[str, Any]:
    """All ways for one window."""
    ids = list(read.window.ids)
    found, random = ([list(some) for some in of] for of in (read.found, read.random))
    losses = {
        PLAIN: slow.plain(ids),
        BOS: slow.read(ids, "none", [[] for _ in found]),
        "quantized": slow.read(ids, "quantized", found),
        "exact": slow.read(ids, "exact", found),
        "dense": slow.read(ids, "dense", found),
        "random": slow.read(ids, "quantized", random),
    }
    text = losses[PLAIN].copy()
    encode = meter.loaded.tokenizer.encode
    for chunk, references in enumerate(found):
        if not references:
            continue
        first, end = chunk * QUERY, min((chunk + 1) * QUERY, len(ids) - 1)
        before: list[int] = []
        fitted: list[Reference] = []
        for reference in references:
            own = encode(reference.text + "\n", add_special_tokens=False)
            if len(before) + len(own) + end + 1 > slow.config.max_position_embeddings:
                break
            fitted.append(reference)
            ordered = in_reading_order(fitted)
            before = [t for one in ordered for t in encode(one.text + "\n", add_special_tokens=False)]
        row = [ids[0], *before, *ids[1 : end + 1]]
        text[first:end] = slow.plain(row)[len(before) + first :]
    losses["text"] = text
    return losses


def test_each_way_has_the_losses_of_the_transcription(place: Place) -> None:
    with open_bank(place.bank) as bank:
        model, loaded = load_reading_model(str(place.model), bank.manifest)
        meter = LossMeter(model, loaded, bank)
        references = References(bank, loaded.tokenizer, 2, limit=2 / 3)
        reads = []
        for number, line in enumerate(place.held_out.read_text("utf-8").splitlines()):
            text = json.loads(line)["text"]
            ids = tuple(loaded.tokenizer.encode(text, add_special_tokens=False))
            document = HeldOut(str(number), len(text), ids)
            reads += references.of(
                document, list(windows_of(document, number, loaded.tokenizer.bos_token_id, 320, QUERY))
            )
        # Windows of different lengths, and chunks that read something.
        assert len({len(read.window.ids) for read in reads}) > 1
        assert sum(len(some) for read in reads for some in read.found) >= 4
        assert all(len(read.found[0]) == 0 for read in reads)
        measured = meter.measure(reads)
        slow = Slow(meter, bank, place.model)
        for number, read in enumerate(reads):
            expected = slow_losses(slow, meter, read)
            for way, losses in expected.items():
                np.testing.assert_allclose(measured[way][number], losses, atol=1e-3, err_msg=way)


def test_no_gain_is_reported_for_a_model_that_never_learned_to_read(place: Place) -> None:
    evaluation = evaluate(place.bank, text=place.held_out, require=["loss_gain_low>0"], store=False)
    results = evaluation.results
    assert "There is no gain" in results["conclusion"] or "There is a loss" in results["conclusion"]
    assert abs(results["gain"]["quantized"]["mean"]) < 0.02
    assert not evaluation.outcomes[0].passed
    assert evaluation.stored is None
    assert read_manifest(place.bank).version == 1
    assert set(results["loss"]) == set(results["gain"]) == {
        "none", "quantized", "exact", "random", "text", "dense",
    }  # fmt: skip
