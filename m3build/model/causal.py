"""Loading a whole model, with its language-model head: for what reads memories and predicts text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from m3build.model.device import choose_device, choose_dtype
from m3build.model.load import (
    check_vocabulary,
    load_weights,
    model_tokenizer,
    quiet,
    reference_bos_ids,
    shape_of,
)
from m3build.model.shape import MemoryShape, ModelFacts, ShapeRequest, resolve_shape
from m3build.model.source import find_model


@dataclass(frozen=True, slots=True)
class CausalModel:
    """A model that predicts tokens and can write and read memories.

    ``model`` is the transformers model with its head, all layers, in eval mode; ``shape`` says where memories
    sit in it. ``directory`` is where its files are.
    """

    model: Any
    tokenizer: Any
    facts: ModelFacts
    shape: MemoryShape
    directory: Path
    trust_remote_code: bool = False

    @property
    def base(self) -> torch.nn.Module:
        """The model without its head."""
        base: torch.nn.Module = self.model.base_model
        return base

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.base.parameters()).device

    @property
    def bos(self) -> tuple[int, ...]:
        """What a context starts with: the tokenizer's BOS if it has one."""
        token = self.tokenizer.bos_token_id
        return () if token is None else (int(token),)

    @property
    def reference_bos(self) -> tuple[int, ...]:
        """Ids of the reference BOS."""
        return reference_bos_ids(self.tokenizer, self.shape.reference_bos)

    def shaped(self, request: ShapeRequest) -> CausalModel:
        """The same model with memories of another shape: what is not requested is the paper's default."""
        return replace(self, shape=resolve_shape(self.facts, request, {}))


def load_causal_model(
    name: str,
    request: ShapeRequest | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> CausalModel:
    """Load a transformers directory or hub id with its head. Options and errors are those of
    :func:`m3build.model.load.load_model`."""
    from transformers import AutoModelForCausalLM

    source = find_model(name, trust_remote_code=trust_remote_code)
    place = choose_device(device)
    facts, shape, config = shape_of(source, request, trust_remote_code)
    with quiet():
        tokenizer = model_tokenizer(source, trust_remote_code)
        check_vocabulary(tokenizer, facts)
        model = load_weights(
            AutoModelForCausalLM, source, config, place, choose_dtype(dtype, place), trust_remote_code
        )
    return CausalModel(model, tokenizer, facts, shape, source.directory, trust_remote_code)
