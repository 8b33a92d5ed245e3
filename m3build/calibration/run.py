"""Calibrating a model directory: passages from a corpus or at random, the result into ``memory3.json``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from m3build.calibration.calibrate import Calibration, calibrate
from m3build.calibration.passages import cut_passages, random_passages, repeat_passages
from m3build.corpus import SourceOptions
from m3build.corpus.documents import read_documents
from m3build.model.causal import CausalModel, load_causal_model
from m3build.model.memory3_file import read_memory3, write_memory3
from m3build_formats.errors import InputError, UsageError

PIECE_TOKENS = 16
_MOST_DOCUMENTS = 10_000


def calibrate_model(
    name: str,
    corpus: Sequence[str] = (),
    *,
    text_field: str = "text",
    passages: int = 64,
    passage_tokens: int = 64,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    write: bool = False,
) -> tuple[Calibration, Path | None]:
    """Calibrate a transformers directory or hub id on ``passages`` passages of a corpus, or of random tokens
    without one. With ``write``, layers and heads go into its ``memory3.json``, whose other keys stay; the
    file's path is returned if there was a recommendation to write.

    Raises InputError for a corpus without two passages of that length, UsageError and what
    :func:`m3build.model.load.load_model` raises.
    """
    model = load_causal_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if write and not Path(name).is_dir():
        raise UsageError(f"--write: {name} is no directory; copy the model into one first.")
    generator = torch.Generator().manual_seed(seed)
    texts = None
    if corpus:
        texts = _from_corpus(model, corpus, text_field, passages, 2 * passage_tokens)
        cut = texts[:, :passage_tokens]
    else:
        special = model.tokenizer.all_special_ids
        size = len(model.tokenizer)
        cut = random_passages(size, special, passage_tokens, passages, generator)
    found = calibrate(model, repeat_passages(cut, PIECE_TOKENS, generator), texts)
    if not write or found.recommended is None:
        return found, None
    kept = {
        key: value
        for key, value in read_memory3(model.directory).items()
        if key not in ("memory_layers", "memory_heads")
    }
    return found, write_memory3(model.directory, {**found.memory3(), **kept})


def _from_corpus(
    model: CausalModel, corpus: Sequence[str], text_field: str, passages: int, tokens: int
) -> torch.Tensor:
    documents = read_documents(corpus, lambda _: None, SourceOptions(text_field=text_field))
    encoded = (
        model.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        for document in islice(documents, _MOST_DOCUMENTS)
    )
    cut = cut_passages(encoded, tokens, passages)
    if len(cut) < 2:
        raise InputError(f"the corpus has {len(cut)} passages of {tokens} tokens; two at least are needed.")
    return cut
