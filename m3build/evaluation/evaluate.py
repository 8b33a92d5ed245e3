"""The whole of an evaluation: loss on held-out text, retrieval on questions, cost, the gate, and the version
of the bank that keeps what came out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3build.bank import Bank, open_bank
from m3build.evaluation.conclusion import conclude
from m3build.evaluation.gate import Outcome, enforce, judge
from m3build.evaluation.options import EvalOptions
from m3build.evaluation.questions import read_questions
from m3build.evaluation.retrieval import measure as measure_retrieval
from m3build.progress import Progress, Silent
from m3build_formats.errors import M3Error, ResourceError, UsageError
from m3build_formats.store_evaluation import store_evaluation

if TYPE_CHECKING:
    from m3build.evaluation.held_out import HeldOut
    from m3build.evaluation.losses import LossMeter
    from m3build.evaluation.references import Reads, References
    from m3build.evaluation.windows import Window

# What the arrays of one batch may take: dense keys and values, read by each query chunk anew.
_BATCH_BYTES = 256 << 20
_WINDOWS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured. ``results``: a JSON object; ``stored``: the version that keeps it, None where none
    does; ``outcomes`` of the gate's conditions; ``problem``: why storing failed."""

    results: Mapping[str, Any]
    stored: int | None
    outcomes: tuple[Outcome, ...]
    problem: M3Error | None = None

    def to_json(self) -> dict[str, Any]:
        """The results with ``stored``."""
        return {**self.results, "stored": self.stored}

    def enforce(self) -> None:
        """Raises the problem of storing, if any, then GateError for conditions that did not hold."""
        if self.problem is not None:
            raise self.problem
        enforce(self.outcomes)


def evaluate_bank(
    path: str | os.PathLike[str],
    options: EvalOptions,
    *,
    version: int | None = None,
    store: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure what a bank is worth (see ``EvalOptions``).

    The conditions of the gate are judged, not enforced: ``Evaluation.enforce`` does that. With ``store`` the
    results become a new version of the bank, if it still holds what was measured.

    Raises UsageError, InputError (no text, no questions), MismatchError (the model is not the bank's),
    CorruptError, ResourceError; a failure to store is kept in the result, so that what was measured is not
    lost.
    """
    conditions = options.conditions()
    watch = progress or Silent()
    with open_bank(path, version) as bank:
        if store and not os.access(Path(path) / "versions", os.W_OK):
            raise ResourceError(f"{os.fspath(path)}: cannot be written to; --no-store leaves the bank alone")
        results: dict[str, Any] = {
            "bank": {"version": bank.manifest.version, "sha256": bank.manifest.sha256},
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        questions = None
        if options.queries is not None and options.qrels is not None:
            # Wrong files are found before hours of work.
            questions = read_questions(Path(options.queries), Path(options.qrels))
        if options.text:
            results.update(_on_text(bank, options, watch))
            results["conclusion"] = conclude(results)
        if questions is not None:
            report = measure_retrieval(bank, questions, watch)
            for note in report.notes:
                watch.note(note)
            results["retrieval"] = report.to_json()
        outcomes = judge(conditions, results)
        results["require"] = [outcome.to_json() for outcome in outcomes]
        results["passed"] = all(outcome.passed for outcome in outcomes)
        manifest = bank.manifest
    if not store:
        return Evaluation(results, None, outcomes)
    try:
        made = store_evaluation(path, manifest, results)
    except M3Error as error:
        return Evaluation(results, None, outcomes, error)
    if made is None:
        watch.note(
            f"not stored: the bank no longer holds what version {manifest.version} holds, which was measured"
        )
    return Evaluation(results, made.version if made else None, outcomes)


def _on_text(bank: Bank, options: EvalOptions, progress: Progress) -> dict[str, Any]:
    from m3build.corpus import SourceOptions
    from m3build.evaluation.cost import measure_cost
    from m3build.evaluation.held_out import held_out_documents
    from m3build.evaluation.losses import LossMeter
    from m3build.evaluation.references import References, read_fixed
    from m3build.evaluation.tally import Tally
    from m3build.evaluation.windows import LONGEST, window_tokens
    from m3build.model.whole import load_control, load_reading_model, model_of

    name = options.model or model_of(bank.manifest)
    fixed = None if options.reference_file is None else read_fixed(Path(options.reference_file))
    sources = SourceOptions(
        text_field=options.text_field, id_field=options.id_field, encoding=options.encoding
    )
    model, loaded = load_reading_model(name, bank.manifest, device=options.device, dtype=options.dtype)
    shape = loaded.shape
    number = shape.references if options.references is None else options.references
    continuations = shape.continuations if options.continuations is None else options.continuations
    size = window_tokens(
        model.config,
        len(loaded.reference_bos_ids),
        shape.reference_tokens,
        shape.query_tokens,
        options.window or LONGEST,
    )
    control = None
    if options.control is not None:
        control = load_control(options.control, loaded.tokenizer, options.device, loaded.dtype)
    meter = LossMeter(
        model,
        loaded,
        bank,
        control=control,
        batch_tokens=options.batch_tokens,
        ranks=number if options.by_rank else 0,
    )
    references = References(
        bank,
        loaded.tokenizer,
        number,
        query=options.query,
        continuations=continuations,
        limit=options.overlap,
        seed=options.seed,
        fixed=fixed,
    )
    tally = Tally(meter.variants, size // shape.query_tokens)
    documents = held_out_documents(
        options.text,
        sources,
        loaded.tokenizer,
        progress,
        documents=options.documents,
        tokens=options.tokens,
        seed=options.seed,
    )
    rows = rows_a_batch(meter, size, number, options.batch_tokens)
    first: list[Reads] = []
    with progress.stage("loss", options.tokens, "tokens") as stage:
        for batch in _batches(_reads(documents, references, tally, meter, size), rows):
            if not any(some for read in first for some in read.found):
                first = batch
            measured = meter.measure(batch)
            for place, read in enumerate(batch):
                tally.add(
                    read.window.document,
                    read.window.chunk,
                    {variant: losses[place] for variant, losses in measured.items()},
                )
            stage.advance(sum(read.window.predicted for read in batch))
    if not tally.total_tokens:
        raise UsageError("the held-out text is too short: nothing in it can be predicted")
    info = bank.cache_info()
    cost = measure_cost(meter, bank, first, _queries(first, loaded.tokenizer), number)
    return {
        "model": loaded.name,
        **tally.results(options.seed),
        "text": {
            "query": "file" if fixed is not None else options.query,
            "references": number,
            "continuations": continuations and fixed is None,
            "query_tokens": shape.query_tokens,
            "window_tokens": size,
            "overlap": options.overlap,
            "left_out": references.left_out,
            "text_references": {"wanted": meter.text_use.wanted, "fitted": meter.text_use.fitted},
            "drawn": {"documents": options.documents, "tokens": options.tokens, "seed": options.seed},
            "dtype": str(loaded.dtype).removeprefix("torch."),
        },
        "cost": {
            **cost.to_json(),
            "bytes_read": info.bytes_read,
            "cache": {"hits": info.hits, "misses": info.misses},
        },
    }


def _reads(
    documents: Iterator[HeldOut], references: References, tally: Any, meter: LossMeter, size: int
) -> Iterator[Reads]:
    from m3build.evaluation.windows import windows_of

    bos = meter.loaded.tokenizer.bos_token_id
    chunk = meter.loaded.shape.query_tokens
    for number, document in enumerate(documents):
        tally.open_document(document.characters)
        windows: list[Window] = list(windows_of(document, number, bos, size, chunk))
        # A long document's windows are looked up some at a time, and kept apart from its other parts.
        for start in range(0, len(windows), _WINDOWS_AT_ONCE):
            yield from references.of(document, windows[start : start + _WINDOWS_AT_ONCE])


def _batches(reads: Iterator[Reads], rows: int) -> Iterator[list[Reads]]:
    batch: list[Reads] = []
    for read in reads:
        batch.append(read)
        if len(batch) == rows:
            yield batch
            batch = []
    if batch:
        yield batch


def rows_a_batch(meter: LossMeter, size: int, references: int, batch_tokens: int) -> int:
    """Windows measured at once: within ``batch_tokens``, and within memory where each query chunk reads
    dense keys and values of its references."""
    shape = meter.loaded.shape
    dense = shape.reference_tokens * shape.kv_heads * shape.head_dim * 2 * len(shape.memory_layers)
    each = (size // shape.query_tokens) * references * dense * meter.loaded.dtype.itemsize
    return max(1, min(batch_tokens // size, _BATCH_BYTES // max(1, each)))


def _queries(reads: Sequence[Reads], tokenizer: Any) -> list[str]:
    """Texts of the query chunks of some windows."""
    chunks = [read.window.of_chunk(chunk) for read in reads for chunk in range(read.window.chunks)]
    texts = [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in chunks]
    return [text for text in texts if text.strip()]
