"""Two places of a transformers model that capturing and reading take over for a while: its attention and a
function of its modelling module.

Users can overlap in threads, so those of a patch are counted under a lock: the first puts it in place, the
last restores what was there, whatever happened in between. One name stands for all of them in transformers'
``AttentionInterface`` (and in ``AttentionMaskInterface``: registered in the first alone, the mask silently
becomes None); which of them a forward pass belongs to is a matter of its thread. Threads that run the same
model plainly meanwhile are served by what the model had.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION_NAME = "m3build"

Attended = tuple[torch.Tensor, torch.Tensor | None]
"""What an attention function returns: the output (B, T, Hq, d), and its weights or None."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """What runs in place of a model's attention: ``attend`` with the arguments of an attention function of
    transformers, ``mask`` with those of a mask function."""

    attend: Callable[..., Attended]
    mask: Callable[..., torch.Tensor | None]


@dataclass(slots=True)
class _Patch:
    """One patched place: how many rely on it, and what was there before."""

    users: int
    original: Any


_LOCK = threading.RLock()
_ATTENTIONS: dict[int, _Patch] = {}
_FUNCTIONS: dict[tuple[str, str], _Patch] = {}
_TAKEOVER: ContextVar[Takeover | None] = ContextVar("m3build_takeover", default=None)


@contextmanager
def attention_taken(config: Any, takeover: Takeover) -> Iterator[None]:
    """While inside, a forward pass in this thread of a model with this config runs ``takeover``."""
    with _LOCK:
        patch = _ATTENTIONS.get(id(config))
        if patch is None:
            patch = _ATTENTIONS[id(config)] = _Patch(0, config._attn_implementation)
            config._attn_implementation = ATTENTION_NAME
        patch.users += 1
    token = _TAKEOVER.set(takeover)
    try:
        yield
    finally:
        _TAKEOVER.reset(token)
        with _LOCK:
            patch.users -= 1
            if patch.users == 0:
                config._attn_implementation = patch.original
                del _ATTENTIONS[id(config)]


def attention_is_taken() -> bool:
    """Whether this thread is inside :func:`attention_taken`."""
    return _TAKEOVER.get() is not None


@contextmanager
def function_wrapped(
    module: ModuleType, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """While inside, a module's global function is ``wrap`` of it. Nothing happens if the module has none of
    that name."""
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    place = (module.__name__, name)
    with _LOCK:
        patch = _FUNCTIONS.get(place)
        if patch is None:
            patch = _FUNCTIONS[place] = _Patch(0, getattr(module, name))
            setattr(module, name, wrap(patch.original))
        patch.users += 1
    try:
        yield
    finally:
        with _LOCK:
            patch.users -= 1
            if patch.users == 0:
                setattr(module, name, patch.original)
                del _FUNCTIONS[place]


def _attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Attended:
    """The registered attention function."""
    takeover = _TAKEOVER.get()
    attend = _original_attention(module) if takeover is None else takeover.attend
    return attend(module, *args, **kwargs)


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> torch.Tensor | None:
    """The registered mask function."""
    takeover = _TAKEOVER.get()
    build: Callable[..., torch.Tensor | None]
    build = ALL_MASK_ATTENTION_FUNCTIONS[_original_name(config)] if takeover is None else takeover.mask
    return build(*args, config=config, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


def _original_name(config: Any) -> str:
    """The attention implementation that a config has when nothing is taken over."""
    with _LOCK:
        patch = _ATTENTIONS.get(id(config))
        found = config._attn_implementation if patch is None else patch.original
    return str(found or "sdpa")


def _original_attention(module: torch.nn.Module) -> Callable[..., Attended]:
    """The attention function that an attention module runs when nothing is taken over."""
    name = _original_name(module.config)
    if name == "eager":
        return eager_attention(module)
    found: Callable[..., Attended] = ALL_ATTENTION_FUNCTIONS[name]
    return found


def eager_attention(module: torch.nn.Module) -> Callable[..., Attended]:
    """The eager attention of an attention module's own modelling code."""
    found: Callable[..., Attended] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return found
