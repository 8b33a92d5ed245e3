"""The codec of a bank of text only, chosen when its first memories are written: as a build would choose it
and train it, on the references that happen to be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, get_args

import numpy as np
import torch

from m3build.codec.members import few_members
from m3build.codec.rows import Scope
from m3build.codec.train import train_codec
from m3build.cold import WarmMemory
from m3build.model import LoadedModel
from m3build.pipeline.codec_sample import HELD_OUT_REFERENCES, HELD_OUT_SHARE, Sample, held_out_errors
from m3build.pipeline.codec_stage import PreparedCodec, references_wanted, spec_for, unquantized
from m3build.progress import Progress
from m3build_formats.arrays_file import write_arrays
from m3build_formats.data_directory import DataDirectory
from m3build_formats.manifest import Manifest

# Vectors of one reference are alike, however many there are: a codec trained on a handful of texts would fit
# no other, and the bank would keep it.
LEAST_REFERENCES: Final = 64


def train_on_memories(
    manifest: Manifest,
    model: LoadedModel,
    memories: Sequence[WarmMemory],
    data: DataDirectory,
    progress: Progress,
) -> PreparedCodec:
    """A codec for the bank of ``manifest``, by its settings, from memories that are ordered by the ids of
    their references.

    Fewer than ``LEAST_REFERENCES`` train none. Its facts tell how many references it was trained on, and not
    of how many: those are a matter of what was asked. Raises UsageError for a codec in the settings that
    there is not.
    """
    text, scope = _asked(manifest)
    if text != "none" and len(memories) < LEAST_REFERENCES:
        progress.note(
            f"codec {text}: {len(memories)} references are too few to train on; memories are stored "
            "unquantized (none) until the bank is compiled with --warm"
        )
        return unquantized(model.shape, scope, text)
    held_out = min(HELD_OUT_REFERENCES, len(memories) // HELD_OUT_SHARE)
    resolved = spec_for(text, scope, model, len(memories) - held_out)
    for warning in resolved.warnings:
        progress.note(warning)
    spec = resolved.spec
    training = 0
    if spec.is_trained:
        training = min(references_wanted(spec, scope, model.shape), len(memories) - held_out)
    sample = _sample(model, memories[held_out : held_out + training])
    codec = train_codec(
        spec, scope, model.shape.heads, sample.keys, sample.values, sample.positions, model.device.type
    )
    facts: dict[str, Any] = {
        **codec.facts(),
        "trained_on": {"references": training},
        **few_members(codec, sample.keys, sample.values, sample.positions),
        **held_out_errors(codec, _sample(model, memories[:held_out]), model, progress),
    }
    if text == "none":
        # Which is settled with that, whatever the bank's settings call it.
        facts["wanted"] = text
    return PreparedCodec(
        codec, write_arrays(data, "codec", codec.to_arrays()) if spec.is_trained else None, facts
    )


def _asked(manifest: Manifest) -> tuple[str, Scope]:
    """Codec string or preset, and scope. The build knew the model's directory, and with it what ``auto`` is
    to this model; who has a model in memory does not."""
    settings = manifest.sources.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    scope: Scope = settings["codec_scope"] if settings.get("codec_scope") in get_args(Scope) else "kind"
    return str(manifest.codec.get("wanted", settings.get("codec", "auto"))), scope


def _sample(model: LoadedModel, memories: Sequence[WarmMemory]) -> Sample:
    shape = model.shape
    sizes = (len(memories), len(shape.heads), shape.sparse_tokens)
    keys = np.zeros((*sizes, shape.head_dim), np.float32)
    values = np.zeros_like(keys)
    positions = np.zeros(sizes, np.uint8)
    for at, memory in enumerate(memories):
        keys[at], values[at] = _numpy(memory.keys), _numpy(memory.values)
        positions[at] = memory.positions.cpu().numpy()
    # No queries were kept, so errors of logits and outputs cannot be measured: all-zero ones are left out.
    queries = np.zeros((len(memories), 1, 1, len(shape.heads), shape.head_dim), np.float32)
    return Sample(keys, values, positions, queries)


def _numpy(vectors: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    found: np.ndarray[Any, np.dtype[np.float32]] = vectors.float().cpu().numpy()
    return found
