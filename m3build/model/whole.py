"""A whole causal language model, head included, for reading and measuring; writing needs the base alone
(:mod:`m3build.model.load`)."""

from __future__ import annotations

from typing import Any

from m3build.model.causal import load_causal_model
from m3build.model.live import loaded_from
from m3build.model.load import LoadedModel
from m3build_formats.manifest import Manifest


def load_reading_model(
    name: str, manifest: Manifest, *, device: str = "auto", dtype: str = "auto"
) -> tuple[Any, LoadedModel]:
    """The causal-LM model of a transformers directory or hub id, in eval mode, and the same as what writes
    the memories of the bank that ``manifest`` is of.

    ``dtype`` auto is the bank's. Raises UsageError (no such model), MismatchError (another model than the
    bank's), CorruptError, ResourceError.
    """
    number = str(manifest.model.get("dtype", "auto")) if dtype == "auto" else dtype
    whole = load_causal_model(name, device=device, dtype=number)
    return whole.model, loaded_from(whole.model, whole.tokenizer, manifest)
