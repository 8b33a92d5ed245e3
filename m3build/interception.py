"""Two places of a transformers model that capturing takes over for a while: its attention's name and a
function of its modelling module.

Captures can overlap in threads, so users of a patch are counted under a lock: the first puts it in place, the
last restores what was there, whatever happened in between. Threads that run the same model plainly meanwhile
meet the patch too; they are served by what the model had, which :func:`original_attention` and
:func:`original_name` look up.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Attended = tuple[torch.Tensor, torch.Tensor | None]
"""What an attention function returns: the output (B, T, Hq, d), and its weights or None."""


@dataclass(slots=True)
class _Patch:
    """One patched place: how many rely on it, and what was there before."""

    users: int
    original: Any


_LOCK = threading.RLock()
_ATTENTIONS: dict[int, _Patch] = {}
_FUNCTIONS: dict[tuple[str, str], _Patch] = {}


@contextmanager
def attention_named(config: Any, name: str) -> Iterator[None]:
    """While inside, models with this config run the attention that is registered under ``name``."""
    with _LOCK:
        patch = _ATTENTIONS.get(id(config))
        if patch is None:
            patch = _ATTENTIONS[id(config)] = _Patch(0, config._attn_implementation)
            config._attn_implementation = name
        patch.users += 1
    try:
        yield
    finally:
        with _LOCK:
            patch.users -= 1
            if patch.users == 0:
                config._attn_implementation = patch.original
                del _ATTENTIONS[id(config)]


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


def original_name(config: Any) -> str:
    """The attention implementation that a config has when nothing is taken over."""
    with _LOCK:
        patch = _ATTENTIONS.get(id(config))
        found = config._attn_implementation if patch is None else patch.original
    return str(found or "sdpa")


def original_attention(module: torch.nn.Module) -> Callable[..., Attended]:
    """The attention function that an attention module runs when nothing is taken over."""
    name = original_name(module.config)
    if name == "eager":
        return eager_attention(module)
    found: Callable[..., Attended] = ALL_ATTENTION_FUNCTIONS[name]
    return found


def eager_attention(module: torch.nn.Module) -> Callable[..., Attended]:
    """The eager attention of an attention module's own modelling code."""
    found: Callable[..., Attended] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return found
