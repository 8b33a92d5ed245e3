"""A whole causal language model, head included, for reading and measuring; writing needs the base alone
(:mod:`m3build.model.load`)."""

from __future__ import annotations

from typing import Any

from m3build.model.causal import CausalModel, load_causal_model
from m3build.model.device import dtype_name
from m3build.model.live import loaded_from
from m3build.model.load import LoadedModel
from m3build_formats.errors import MismatchError, UsageError
from m3build_formats.manifest import Manifest


def model_of(manifest: Manifest) -> str:
    """The model that a bank was last compiled with, as it was named then. Raises UsageError where the bank
    does not say."""
    settings = manifest.sources.get("settings")
    name = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(name, str) or not name:
        raise UsageError("the bank does not say where its model is: name it with --model")
    return name


def load_whole(name: str, manifest: Manifest, *, device: str = "auto", dtype: str = "auto") -> CausalModel:
    """A model to read the bank that ``manifest`` is of; whether it is the one that wrote the memories is for
    :func:`m3build.model.live.loaded_from` to say. ``dtype`` auto is the bank's. Raises the errors of
    ``load_causal_model``."""
    number = str(manifest.model.get("dtype", "auto")) if dtype == "auto" else dtype
    return load_causal_model(name, device=device, dtype=number)


def load_reading_model(
    name: str, manifest: Manifest, *, device: str = "auto", dtype: str = "auto"
) -> tuple[Any, LoadedModel]:
    """The causal-LM model of a transformers directory or hub id, in eval mode, and the same as what writes
    the memories of the bank that ``manifest`` is of.

    ``dtype`` auto is the bank's. Raises UsageError (no such model), MismatchError (another model than the
    bank's), CorruptError, ResourceError.
    """
    whole = load_whole(name, manifest, device=device, dtype=dtype)
    return whole.model, loaded_from(whole.model, whole.tokenizer, manifest)


def load_control(name: str, tokenizer: Any, device: str, dtype: Any) -> Any:
    """A causal-LM model to compare another one with, whose ``tokenizer`` it must have. Raises MismatchError
    where it has another, and the errors of ``load_causal_model``."""
    control = load_causal_model(name, device=device, dtype=dtype_name(dtype))
    if control.tokenizer.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
        raise MismatchError(
            f"{name} has another tokenizer than the bank's model: their losses cannot be compared"
        )
    return control.model
