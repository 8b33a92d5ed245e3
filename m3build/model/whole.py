"""A whole causal language model, head included, for reading and measuring; writing needs the base alone
(:mod:`m3build.model.load`)."""

from __future__ import annotations

from typing import Any

import torch

from m3build.model.device import choose_device, choose_dtype
from m3build.model.live import loaded_from
from m3build.model.load import LoadedModel, _first_line, _quiet, load_tokenizer
from m3build.model.source import find_model
from m3build_formats.errors import CorruptError, MismatchError, ResourceError
from m3build_formats.manifest import Manifest


def load_reading_model(
    name: str, manifest: Manifest, *, device: str = "auto", dtype: str = "auto"
) -> tuple[Any, LoadedModel]:
    """The causal-LM model of a transformers directory or hub id, in eval mode, and the same as what writes
    the memories of the bank that ``manifest`` is of.

    ``dtype`` auto is the bank's. Raises UsageError (no such model), MismatchError (another model than the
    bank's), CorruptError, ResourceError.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    place = choose_device(device)
    number = choose_dtype(str(manifest.model.get("dtype", "auto")) if dtype == "auto" else dtype, place)
    tokenizer = load_tokenizer(name)
    source = find_model(name)
    try:
        with _quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                source.directory, dtype=number, use_safetensors=True, local_files_only=True
            )
        model = model.to(place).eval()
    except SafetensorError as error:
        raise CorruptError(f"{source.name}: a weight file is broken: {_first_line(error)}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"{source.name} does not fit into the memory of {place.type}; try --dtype bfloat16."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise MismatchError(f"{source.name}: transformers cannot load it: {_first_line(error)}") from error
    return model, loaded_from(model, tokenizer, manifest)
