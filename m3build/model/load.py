"""Loading a model for writing memories: the layers up to the deepest memory layer, no head, no code from the
model directory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3build.model.device import bound_kernel_caches, choose_device, choose_dtype, dtype_name
from m3build.model.identity import fingerprint
from m3build.model.memory3_file import read_memory3
from m3build.model.probe import LayerFacts, probe, probe_ids
from m3build.model.shape import MemoryShape, ModelFacts, ShapeRequest, resolve_shape
from m3build.model.source import ModelSource, find_model
from m3build.model.support import check_supported, model_facts
from m3build_formats.errors import CorruptError, MismatchError, ResourceError, UsageError


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to write memories.

    ``base`` is the transformers model without head and without the layers after the deepest memory layer, in
    eval mode, on ``device`` in ``dtype``. ``reference_bos_ids`` are the ids that stand before every
    reference: the tokenizer's BOS if it has one, then those of the shape's ``reference_bos``. ``layer_facts``
    are those of the memory layers, ``probe`` their keys and values on a fixed text. ``directory`` is None for
    a model that someone else loaded (:mod:`m3build.model.live`), which then has all its layers.
    """

    base: torch.nn.Module
    tokenizer: Any
    facts: ModelFacts
    shape: MemoryShape
    directory: Path | None
    device: torch.device
    dtype: torch.dtype
    reference_bos_ids: tuple[int, ...]
    rope: dict[str, Any] | None
    layer_facts: tuple[LayerFacts, ...]
    probe: list[list[float]]

    @property
    def name(self) -> str:
        """Base name of the model directory, or hub id."""
        return self.facts.name

    def fingerprint(self) -> str:
        """Hex SHA-256 over config, weights and tokenizer; reads the weight files. Raises UsageError for a
        model of which no files are known."""
        if self.directory is None:
            raise UsageError(f"{self.name} was not loaded from a directory: its files are not known.")
        return fingerprint(self.directory)

    def record(self) -> dict[str, Any]:
        """What a manifest keeps of the model, JSON; no absolute path. The shape of the memories is
        ``shape.record()``."""
        return {
            "name": self.facts.name,
            "architecture": self.facts.architecture,
            "class": type(self.base).__name__,
            "fingerprint": self.fingerprint(),
            "layers": self.facts.layers,
            "query_heads": self.facts.query_heads,
            "kv_heads": self.facts.kv_heads,
            "head_dim": self.facts.head_dim,
            "hidden_size": self.facts.hidden_size,
            "intermediate_size": self.facts.intermediate_size,
            "vocab_size": self.facts.vocab_size,
            "rope": self.rope,
            "attention": [fact.record() for fact in self.layer_facts],
            "reference_bos_ids": list(self.reference_bos_ids),
            "probe_ids": probe_ids(self.tokenizer),
            "tokenizer_tokens": int(self.tokenizer.vocab_size),
            "dtype": dtype_name(self.dtype),
            "device": self.device.type,
            "probe": self.probe,
        }


def load_shape(
    name: str, request: ShapeRequest | None = None, *, trust_remote_code: bool = False
) -> tuple[ModelFacts, MemoryShape]:
    """Facts and memory shape of a model from its config and ``memory3.json`` alone; no weights are read.

    Raises what :func:`load_model` raises for the same reasons.
    """
    source = find_model(name, trust_remote_code=trust_remote_code, weights=False)
    facts, shape, _ = shape_of(source, request, trust_remote_code)
    return facts, shape


def load_model(
    name: str,
    request: ShapeRequest | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load the memory layers of a model from a transformers directory or hub id.

    ``device`` is auto, cpu, cuda or mps; ``dtype`` auto (bfloat16 where the device computes it natively, else
    float32), bfloat16, float16 or float32. Nothing in a model directory is executed unless
    ``trust_remote_code``.

    Raises UsageError (no such model, no safetensors, a bad option or ``memory3.json``), MismatchError (an
    architecture that cannot write memories), CorruptError (weights missing or broken), ResourceError (hub or
    memory out of reach).
    """
    from transformers import AutoModel

    bound_kernel_caches()
    source = find_model(name, trust_remote_code=trust_remote_code)
    place = choose_device(device)
    number = choose_dtype(dtype, place)
    facts, shape, config = shape_of(source, request, trust_remote_code)
    rope = rope_settings(config)
    depth = shape.memory_layers[-1] + 1
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:depth]
    with quiet():
        tokenizer = model_tokenizer(source, trust_remote_code)
        check_vocabulary(tokenizer, facts)
        base = load_weights(AutoModel, source, config, place, number, trust_remote_code)
    layer_facts, values = probe(base, tokenizer, facts, shape, place)
    return LoadedModel(
        base=base,
        tokenizer=tokenizer,
        facts=facts,
        shape=shape,
        directory=source.directory,
        device=place,
        dtype=number,
        reference_bos_ids=reference_bos_ids(tokenizer, shape.reference_bos),
        rope=rope,
        layer_facts=layer_facts,
        probe=values,
    )


def shape_of(
    source: ModelSource, request: ShapeRequest | None, trust_remote_code: bool
) -> tuple[ModelFacts, MemoryShape, Any]:
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(
                source.directory, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{source.name}: transformers cannot use its config.json: {_first_line(error)}"
            ) from error
        check_supported(config, source.name, trust_remote_code)
    facts = model_facts(config, source.name)
    return facts, resolve_shape(facts, request or ShapeRequest(), read_memory3(source.directory)), config


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a transformers directory or hub id, as :func:`load_model` gives it. Raises UsageError
    (no such model, no fast tokenizer), ResourceError."""
    source = find_model(name, weights=False)
    with quiet():
        return model_tokenizer(source, trust_remote_code=False)


def model_tokenizer(source: ModelSource, trust_remote_code: bool) -> Any:
    """The tokenizer of a model directory: ``tokenizer.json`` exactly as it stands where there is one.

    AutoTokenizer rather goes by the architecture, and its classes rebuild and amend what the file says,
    differently from one version of transformers to the next.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind: Any = PreTrainedTokenizerFast if (source.directory / "tokenizer.json").is_file() else AutoTokenizer
    options = {"trust_remote_code": True} if trust_remote_code and kind is AutoTokenizer else {}
    try:
        tokenizer = kind.from_pretrained(source.directory, local_files_only=True, **options)
    except Exception as error:
        # The tokenizers library raises the bare class for a file that it cannot use.
        expected = (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError)
        if type(error) is not Exception and not isinstance(error, expected):
            raise
        raise UsageError(f"{source.name}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UsageError(
            f"{source.name} has no fast tokenizer (tokenizer.json), whose character offsets m3build needs."
        )
    return tokenizer


def check_vocabulary(tokenizer: Any, facts: ModelFacts) -> None:
    """Raises MismatchError for a tokenizer with ids that the model does not have."""
    if len(tokenizer) > facts.vocab_size:
        raise MismatchError(
            f"{facts.name}: the tokenizer has {len(tokenizer)} tokens, the model {facts.vocab_size}."
        )


def load_weights(
    kind: Any,
    source: ModelSource,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> Any:
    """The model of an auto class (``kind``) in eval mode. Raises CorruptError, ResourceError or MismatchError
    as :func:`load_model` does."""
    from safetensors import SafetensorError

    try:
        model, info = kind.from_pretrained(
            source.directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        _trim(model.base_model, config.num_hidden_layers)
        model = model.to(device)
    except SafetensorError as error:
        raise CorruptError(f"{source.name}: a weight file is broken: {_first_line(error)}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"{source.name} does not fit into the memory of {device.type}; try --dtype bfloat16."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise MismatchError(f"{source.name}: transformers cannot load it: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise CorruptError(
            f"{source.name}: the weight files lack {len(missing)} of the tensors that its config asks for,"
            f" such as {missing[0]}."
        )
    return model.eval()


def _trim(base: torch.nn.Module, depth: int) -> None:
    """Drop layers after ``depth`` where the architecture built them all the same."""
    for name, child in base.named_children():
        if (
            isinstance(child, torch.nn.ModuleList)
            and len(child) > depth
            and name in ("layers", "h", "blocks")
        ):
            setattr(base, name, child[:depth])


def reference_bos_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids that stand before every reference: the tokenizer's BOS if it has one, then those of ``text``."""
    own = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    return own + (tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ())


def rope_settings(config: Any) -> dict[str, Any] | None:
    """RoPE settings of a config as plain JSON, or None for a model without."""
    found = getattr(config, "rope_parameters", None)
    return None if found is None else _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers says nothing on standard error while inside: what matters becomes an error, the rest is
    noise in a build's log."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
