"""Transformers' own models, wholly in float64: what the slow oracles are held against."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_model
from reference.slow_memory import Floats
from torch.overrides import TorchFunctionMode


class NothingInFloat32(TorchFunctionMode):
    """Float64 wherever transformers asks for float32: in norms, attention weights and rotary angles."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        named = {
            name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()
        }
        return func(*args, **named)


def wild_model(arch: str, **over: Any) -> Any:
    """A tiny model whose norms, biases and attention are far from their initial ones, zeros and uniform."""
    model = tiny_model(arch, seed=3, **over)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.15 if parameter.dim() == 2 else 0.3)
    return model


def exact_copy(model: Any) -> Any:
    """The same model in float64, with eager attention; to be run under ``NothingInFloat32``."""
    with NothingInFloat32(), torch.no_grad():
        exact = (
            type(model)(model.config).double().eval()
        )  # built here: its rotary frequencies are float64 too
        exact.load_state_dict(model.state_dict())
        exact.set_attn_implementation("eager")
    return exact


def exact_logits(exact: Any, ids: list[int]) -> Floats:
    """(T, vocab) of an exact copy, with transformers' own positions and masks."""
    with NothingInFloat32(), torch.no_grad():
        logits = exact(torch.tensor([ids]), use_cache=False).logits[0]
    assert logits.dtype == torch.float64
    return np.asarray(logits.numpy())


def masked_logits(
    exact: Any,
    ids: list[int],
    positions: list[int],
    masks: list[Floats],
    monkeypatch: pytest.MonkeyPatch,
) -> Floats:
    """(T, vocab) of an exact copy whose tokens stand at the positions given, and whose attention logits get
    ``masks[layer]``, (query heads, T, T), added after any soft-cap, in place of transformers' own mask.
    """
    module = importlib.import_module(type(exact).__module__)
    eager = module.eager_attention_forward
    layers_run: list[int] = []

    def masked(block: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        layers_run.append(block.layer_idx)
        return eager(block, query, key, value, torch.tensor(masks[block.layer_idx])[None], *args, **kwargs)

    with monkeypatch.context() as patched, NothingInFloat32(), torch.no_grad():
        patched.setattr(module, "eager_attention_forward", masked)
        logits = exact(torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]
    assert layers_run == list(range(len(masks)))
    assert logits.dtype == torch.float64
    return np.asarray(logits.numpy())
