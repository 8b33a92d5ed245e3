"""A model that someone has loaded already, checked to be the one that a bank's memories are of.

Such a model has no files that could be hashed, so it is recognised by what it does: its sizes, RoPE and
attention settings, the ids that its tokenizer gives, and its keys and values on the probe text
(:mod:`m3build.model.probe`). Nothing of the model is changed or trimmed; a capture leaves it after the
deepest memory layer anyway, so that its memories are those of :func:`m3build.model.load.load_model`, bit for
bit where device class and number type are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import torch

from m3build.model.device import DTYPES, dtype_name
from m3build.model.load import LoadedModel, reference_bos_ids, rope_settings
from m3build.model.probe import TOLERANCE, matches_probe, probe, probe_ids
from m3build.model.shape import MemoryShape, ModelFacts, ShapeRequest, resolve_shape
from m3build.model.support import check_supported, model_facts
from m3build_formats.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from m3build_formats.manifest import Manifest

_SIZES: Final = (
    ("layers", "layers"),
    ("query_heads", "query heads"),
    ("kv_heads", "key-value heads"),
    ("head_dim", "dimensions a head"),
)
_SHOWN: Final = 60


def loaded_from(model: torch.nn.Module, tokenizer: Any, manifest: Manifest) -> LoadedModel:
    """``model``, with or without its language-model head, as what writes and reads the memories of a bank.

    ``tokenizer`` is the model's own, a fast one. The result's ``base`` is the caller's module itself, with
    all of its layers, on the device and in the number type that it has; its ``shape`` is the bank's.

    Raises MismatchError, naming what differs, where the model is not the one that the bank's memories are of:
    sizes, RoPE or attention settings, the tokenizer, the reference BOS, keys and values on the probe text;
    also where the manifest does not say what it takes to tell. Raises UsageError for what is no transformers
    model, or one in training mode whose dropout would change its keys.
    """
    base = _base_of(model)
    config: Any = base.config
    name = _name_of(config, base)
    check_supported(config, name, trust_remote_code=True)
    facts, recorded = model_facts(config, name), manifest.model
    for key, words in _SIZES:
        _refuse(name, words, getattr(facts, key), recorded.get(key, getattr(facts, key)))
    rope = rope_settings(config)
    _refuse(name, "RoPE settings", rope, _recorded(recorded, "rope"))
    shape = _shape_of(manifest, facts)
    bos = _check_tokenizer(tokenizer, shape, recorded, name)
    device, dtype = _place_of(base, name)
    layer_facts, numbers = probe(base, tokenizer, facts, shape, device)
    if "attention" in recorded:
        found = [fact.record() for fact in layer_facts]
        _refuse(name, "attention settings", found, recorded["attention"])
    if not matches_probe(numbers, _probe_of(recorded), str(recorded["dtype"]), dtype_name(dtype)):
        raise MismatchError(
            f"{name} is not the model that the bank was made with ({recorded['name']}): it gives other keys"
            " and values on the probe text."
        )
    return LoadedModel(
        base=base,
        tokenizer=tokenizer,
        facts=facts,
        shape=shape,
        directory=None,
        device=device,
        dtype=dtype,
        reference_bos_ids=bos,
        rope=rope,
        layer_facts=layer_facts,
        probe=numbers,
    )


def _base_of(model: torch.nn.Module) -> Any:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"{type(model).__name__} is no transformers model; give the model that"
            " AutoModelForCausalLM.from_pretrained returned."
        )
    base: Any = model.base_model
    if base.training and _drops_out(base):
        raise UsageError(
            f"{type(base).__name__} is in training mode, in which dropout changes its keys and values; call"
            " eval() first."
        )
    return base


def _drops_out(base: torch.nn.Module) -> bool:
    """Whether a forward pass in training mode is random: by a module, or by a number that attention modules
    hand to their function."""
    return any(
        (isinstance(module, torch.nn.Dropout) and module.p > 0)
        or float(getattr(module, "attention_dropout", None) or 0) > 0
        for module in base.modules()
    )


def _name_of(config: Any, base: torch.nn.Module) -> str:
    """The last part of where the model came from, never an absolute path; else its class."""
    return PurePath(str(getattr(config, "_name_or_path", "") or "")).name or type(base).__name__


def _place_of(base: Any, name: str) -> tuple[torch.device, torch.dtype]:
    device, dtype = base.get_input_embeddings().weight.device, base.dtype
    if dtype not in (*DTYPES.values(), torch.float64):
        raise MismatchError(f"{name} computes in {dtype_name(dtype)}; there are {', '.join(DTYPES)}.")
    return device, dtype


def _shape_of(manifest: Manifest, facts: ModelFacts) -> MemoryShape:
    """The shape of the bank's memories on this model."""
    memory = manifest.memory
    optional = {key: memory.get(key) for key in ("query_tokens", "references", "continuations")}
    try:
        return resolve_shape(
            facts,
            ShapeRequest(
                memory_heads=dict(zip(memory["memory_layers"], memory["memory_heads"], strict=True)),
                sparse_tokens=memory["sparse_tokens"],
                reference_tokens=memory["reference_tokens"],
                reference_bos=_text(memory, "reference_bos"),
                selection=_text(memory, "selection"),
                **optional,
            ),
            {},
        )
    except UsageError as error:
        raise MismatchError(f"the memories of the bank do not fit {facts.name}: {error}") from error


def _check_tokenizer(
    tokenizer: Any, shape: MemoryShape, recorded: Mapping[str, Any], name: str
) -> tuple[int, ...]:
    """The ids of the reference BOS, once the tokenizer is seen to be the bank's."""
    if not getattr(tokenizer, "is_fast", False):
        raise MismatchError(
            f"{type(tokenizer).__name__} is no fast tokenizer; m3build reads tokenizer.json, as"
            " PreTrainedTokenizerFast.from_pretrained gives it."
        )
    # The probe's ids first: with them equal, another reference BOS is one of another text.
    for key, words, found in (
        ("tokenizer_tokens", "tokens in the tokenizer", int(tokenizer.vocab_size)),
        ("probe_ids", "token ids of the probe text (another tokenizer)", probe_ids(tokenizer)),
    ):
        _refuse(name, words, found, recorded.get(key, found))
    bos = reference_bos_ids(tokenizer, shape.reference_bos)
    _refuse(name, "the ids of the reference BOS", list(bos), _recorded(recorded, "reference_bos_ids"))
    return bos


def _probe_of(recorded: Mapping[str, Any]) -> list[list[float]]:
    stored, dtype = _recorded(recorded, "probe"), _recorded(recorded, "dtype")
    good = isinstance(stored, list) and all(
        isinstance(layer, list) and all(type(number) in (int, float) for number in layer) for layer in stored
    )
    if not good or not isinstance(dtype, str) or dtype not in TOLERANCE:
        raise MismatchError(
            "the bank's manifest has no probe of its model that can be compared (model.probe, model.dtype)."
        )
    found: list[list[float]] = stored
    return found


def _recorded(section: Mapping[str, Any], key: str) -> Any:
    if key not in section:
        raise MismatchError(f"the bank's manifest does not say {key}; its model cannot be told from another.")
    return section[key]


def _text(section: Mapping[str, Any], key: str) -> str:
    value = _recorded(section, key)
    if not isinstance(value, str):
        raise MismatchError(f"the bank's manifest has {value!r:.60} for {key}, which should be a string.")
    return value


def _refuse(name: str, words: str, found: object, expected: object) -> None:
    where, here, there = _first_difference(found, expected)
    if here != there:
        raise MismatchError(
            f"{name} is not the model that the bank was made with, or runs with other settings: {words}"
            f"{where}: {str(there)[:_SHOWN]} in the bank, {str(here)[:_SHOWN]} here."
        )


def _first_difference(found: object, expected: object) -> tuple[str, object, object]:
    """Where two JSON values differ first, as a path, and the values there; equal values if nowhere."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected}):
            if found.get(key) != expected.get(key):
                where, here, there = _first_difference(found.get(key), expected.get(key))
                return f" {key}{where}", here, there
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for here, there in zip(found, expected, strict=True):
            if here != there and isinstance(here, dict):
                return _first_difference(here, there)
    return "", found, expected
