"""``verify --deep``: encodes a sample of a bank's chunks again and compares with what is stored.

On the device class, number type and processor features that the bank was made with, the bytes must be equal;
elsewhere arithmetic differs in the last bits, so decoded keys and values must agree within a tolerance, and a
few kept tokens may differ where two were nearly tied.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3build.codec.codec import Codec
from m3build.model import LoadedModel, ShapeRequest, load_model, matches_probe
from m3build.pipeline.codec_stage import PreparedCodec
from m3build.pipeline.libraries import library_versions
from m3build_formats.bank import open_bank
from m3build_formats.errors import MismatchError, UsageError
from m3build_formats.open_bank import BankFiles

# Mean squared difference of decoded keys and values over their variance, about that of bfloat16 arithmetic
# done in another order, with what a code that tips to the neighbouring centroid adds.
TOLERANCE = 0.02
SAME_LIBRARIES = ("torch", "transformers", "machine", "cpu")


@dataclass(slots=True)
class DeepReport:
    """What encoding again showed: ``exact`` rows were equal byte for byte; ``problems`` name those that were
    not as they should be.
    """

    compared: int = 0
    exact: int = 0
    bytes_expected: bool = True
    worst: float = 0.0
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "compared": self.compared,
            "exact": self.exact,
            "bytes_expected": self.bytes_expected,
            "worst": self.worst,
            "problems": list(self.problems),
        }

    def describe(self) -> str:
        """One line for people."""
        if not self.compared:
            return "no chunk has a memory yet: nothing to encode again"
        if self.bytes_expected:
            return f"encoded {self.compared} chunks again: {self.exact} equal byte for byte"
        return (
            f"encoded {self.compared} chunks again on another kind of machine than the bank was made "
            f"on: {self.exact} equal byte for byte, "
            f"largest difference {self.worst:.2g} of the variance (allowed {TOLERANCE:g})"
        )


def verify_deep(
    bank: str | os.PathLike[str],
    version: int | None = None,
    model: str | None = None,
    sample: int = 64,
    device: str = "auto",
) -> DeepReport:
    """Encode ``sample`` chunks that have a memory, drawn by their ids, again.

    Raises UsageError where the model cannot be found, MismatchError where it is not the one the bank was made
    with.
    """
    with open_bank(bank, version=version) as files:
        manifest = files.manifest
        loaded = _load(manifest.model, manifest.memory, manifest.sources, model, device)
        same_files = manifest.model["fingerprint"] == loaded.fingerprint()
        if not same_files:
            _refuse_other_model(manifest.model, loaded)
        codec = PreparedCodec(Codec.from_arrays(files.codec_arrays(), manifest.codec), None, {})
        report = DeepReport(
            bytes_expected=same_files and _same_machine(manifest.model, manifest.libraries, loaded)
        )
        with codec.row_encoder(loaded, batch_tokens=16384) as encode:
            for shard, rows in _drawn(files, sample).items():
                source = files.shards[shard]
                chunks = [source.chunk(row) for row in rows]
                stored = source.memories(rows)
                texts = [chunk.title + "\n" + chunk.text if chunk.title else chunk.text for chunk in chunks]
                tokens = [np.array(ids, np.uint32) for ids in _token_ids(loaded, texts)]
                for at, (chunk, ids) in enumerate(zip(chunks, tokens, strict=True)):
                    if len(ids) != chunk.tokens:
                        raise MismatchError(
                            f"shard {shard}, row {rows[at]}: the tokenizer gives {len(ids)} tokens, the "
                            f"bank has {chunk.tokens}"
                        )
                for indices, made in encode(tokens):
                    for index, row in zip(indices, made, strict=True):
                        _compare(report, codec.codec, stored[index], row, f"shard {shard}, row {rows[index]}")
    return report


def _load(recorded: Any, memory: Any, sources: Any, model: str | None, device: str) -> LoadedModel:
    name = model or sources.get("settings", {}).get("model")
    if not name:
        raise UsageError("the bank does not say where its model is: name it with --model")
    request = ShapeRequest(
        memory_heads=dict(zip(memory["memory_layers"], memory["memory_heads"], strict=True)),
        sparse_tokens=memory["sparse_tokens"],
        reference_tokens=memory["reference_tokens"],
        reference_bos=memory["reference_bos"],
        selection=memory["selection"],
    )
    return load_model(name, request, device=device, dtype=recorded["dtype"])


def _refuse_other_model(recorded: Any, loaded: LoadedModel) -> None:
    if not matches_probe(loaded.probe, recorded["probe"], recorded["dtype"]):
        raise MismatchError(
            f"{loaded.name} is not the model that the bank was made with ({recorded['name']}): it gives "
            f"other keys and values on the probe text"
        )


def _same_machine(recorded: Any, libraries: Any, loaded: LoadedModel) -> bool:
    here = library_versions()
    return recorded["device"] == loaded.device.type == "cpu" and all(
        libraries.get(name) == here[name] for name in SAME_LIBRARIES
    )


def _drawn(files: BankFiles, sample: int) -> dict[int, list[int]]:
    """The rows with the smallest ids of those that have a memory: a uniform draw, the same each time."""
    smallest: list[tuple[bytes, int, int]] = []
    for number, shard in enumerate(files.shards):
        row = 0
        for block in shard.chunk_ids():
            cold = files.cold([(number, row + i) for i in range(len(block))])
            smallest += [(key.tobytes(), number, row + i) for i, key in enumerate(block) if not cold[i]]
            row += len(block)
            smallest = sorted(smallest)[:sample]
    drawn: dict[int, list[int]] = {}
    for _, number, row in smallest:
        drawn.setdefault(number, []).append(row)
    return {number: sorted(rows) for number, rows in sorted(drawn.items())}


def _token_ids(loaded: LoadedModel, texts: list[str]) -> list[list[int]]:
    from m3build.chunking.encoder import Encoder

    return [list(encoded.ids) for encoded in Encoder(loaded.tokenizer).encode(texts)]


def _compare(
    report: DeepReport, codec: Codec, stored: NDArray[np.uint8], made: NDArray[np.uint8], where: str
) -> None:
    report.compared += 1
    if np.array_equal(stored, made):
        report.exact += 1
        return
    if report.bytes_expected:
        differing = int(np.count_nonzero(stored != made))
        report.problems.append(f"{where}: encoded again, {differing} of {len(stored)} bytes differ")
        return
    codes = codec.row_bytes
    shape = (1, len(codec.heads), codec.slots)
    positions = [row[codes:].reshape(shape) for row in (stored, made)]
    decoded = [
        codec.decode_rows(row[None, :codes], at) for row, at in zip((stored, made), positions, strict=True)
    ]
    # Where other tokens were kept, vectors of other tokens would be compared; such slots are left to the
    # share of agreeing ones.
    agree = positions[0] == positions[1]
    difference = sum(float(((a - b)[agree] ** 2).sum()) for a, b in zip(decoded[0], decoded[1], strict=True))
    variance = sum(float((a[agree] ** 2).sum()) for a in decoded[0])
    worst = difference / variance if variance else 0.0
    report.worst = max(report.worst, worst)
    if worst > TOLERANCE or float(agree.mean()) < 0.75:
        report.problems.append(
            f"{where}: encoded again, keys and values differ by {worst:.2g} of their square, "
            f"{100 * float(agree.mean()):.0f} % of kept tokens agree"
        )
