"""Queries, keys and values of chosen layers, taken out of an ordinary transformers forward pass.

Design:

* One implementation for compiling, reading and training. Nothing here switches gradients off; a caller that
  needs none wraps the call in ``torch.no_grad`` or ``torch.inference_mode``.
* The model runs its own code. Its attention, which goes through transformers' ``AttentionInterface``, is
  taken over by a function here that sees query, key and value after RoPE. Those before RoPE are taken up on
  the way in, by a wrapper around the modelling module's ``apply_rotary_pos_emb``: this is exact for query/key
  norms, fused projections and partial rotary alike, which turning the key back is not (0.3 % off in
  bfloat16).
* Rows are padded on the right. Under causal attention no token sees what comes after it, so right padding
  needs no padding mask, and the mask has one form that follows from the padded length alone. That makes a
  reference's bits independent of its neighbours.
* The forward pass is left, by an exception that never escapes this module, once the deepest wanted layer has
  its key and value: that layer's attention, output projection and MLP, later layers and the final norm do not
  run.
* What is patched (the model's attention, the rotary function) is patched while a capture runs and
  restored after, also after an error (:mod:`m3build.interception`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from m3build.interception import (
    Attended,
    Takeover,
    attention_taken,
    eager_attention,
    function_wrapped,
)
from m3build_formats.errors import MismatchError

ROTARY_NAME = "apply_rotary_pos_emb"

# What a modelling module may hand to its attention function without leaving standard causal attention.
# Anything else that is not None (sinks, position biases, paged caches …) takes part in the logits in a way
# that the selection rules do not know.
_STANDARD_ARGUMENTS = frozenset(
    {
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "sliding_window",
        "softcap",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class LayerCapture:
    """Queries, keys and values of one layer for a batch of right-padded rows.

    ``query`` (B, Hq, T, d) and ``key`` (B, Hkv, T, d) are before RoPE and after any query/key norm;
    ``rotated_query`` and ``rotated_key`` are the same after RoPE, as the attention uses them; ``value`` (B,
    Hkv, T, d). All in the model's dtype. Query head g + h·(Hq/Hkv) shares key-value head h. The logits of the
    layer are ``softcap(q·k·scaling)``.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    rotated_query: torch.Tensor
    rotated_key: torch.Tensor
    value: torch.Tensor
    scaling: float
    softcap: float | None = None
    sliding_window: int | None = None

    @property
    def kv_heads(self) -> int:
        """Key-value heads present in this capture."""
        return int(self.key.shape[1])

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return int(self.query.shape[1] // self.key.shape[1])

    def rows(self, count: int) -> LayerCapture:
        """The same capture with the first ``count`` rows only."""
        if count == self.key.shape[0]:
            return self
        return replace(
            self,
            query=self.query[:count],
            key=self.key[:count],
            rotated_query=self.rotated_query[:count],
            rotated_key=self.rotated_key[:count],
            value=self.value[:count],
        )

    def heads(self, kv_heads: Sequence[int]) -> LayerCapture:
        """The same capture with these key-value heads only, each with its query heads."""
        if list(kv_heads) == list(range(self.kv_heads)):
            return self
        chosen = torch.tensor(list(kv_heads), device=self.key.device)
        group = self.group
        queries = (chosen[:, None] * group + torch.arange(group, device=chosen.device)).flatten()
        return replace(
            self,
            query=self.query.index_select(1, queries),
            key=self.key.index_select(1, chosen),
            rotated_query=self.rotated_query.index_select(1, queries),
            rotated_key=self.rotated_key.index_select(1, chosen),
            value=self.value.index_select(1, chosen),
        )


Receiver = Callable[[LayerCapture], None]


class _Done(BaseException):
    """Leaves the forward pass once everything is captured. Not an Exception, so that modelling code cannot
    swallow it."""


@dataclass(slots=True)
class _Run:
    """State of one capture in one thread."""

    wanted: frozenset[int]
    deepest: int
    receive: Receiver
    has_rotary: bool
    stop: bool
    seen: set[int] = field(default_factory=set)
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    after: tuple[torch.Tensor, torch.Tensor] | None = None


_RUN: ContextVar[_Run | None] = ContextVar("m3build_capture", default=None)


def capture(
    base: torch.nn.Module,
    input_ids: torch.Tensor | None,
    layers: Sequence[int],
    *,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
) -> list[LayerCapture]:
    """Queries, keys and values of ``layers`` (in ascending order) for token ids (B, T), positions from 0.

    ``base`` is a decoder-only transformers model without its head (``model.base_model``). Rows shorter than T
    are padded on the right with any valid id and need no ``attention_mask``; one (B, T) is passed on to the
    model if given. Differentiable.

    Raises MismatchError, naming the model's class, where its attention is not the standard causal kind.
    """
    captured: list[LayerCapture] = []
    capture_each(
        base, input_ids, layers, captured.append, attention_mask=attention_mask, inputs_embeds=inputs_embeds
    )
    return captured


def capture_each(
    base: torch.nn.Module,
    input_ids: torch.Tensor | None,
    layers: Sequence[int],
    receive: Receiver,
    *,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    stop: bool = True,
) -> None:
    """As :func:`capture`, but each layer is handed to ``receive`` as soon as it is there, so that no more
    than one is held at a time. With ``stop`` False the forward pass runs to its end, as a check of the model
    does."""
    if not layers:
        raise ValueError("no layers to capture")
    module = sys.modules[type(base).__module__]
    run = _Run(
        wanted=frozenset(layers),
        deepest=max(layers),
        receive=receive,
        has_rotary=hasattr(module, ROTARY_NAME),
        stop=stop,
    )
    # SDPA's mask: None (causal by flag) unless a sliding window is shorter than the row.
    takeover = Takeover(partial(_attention, run), sdpa_mask)
    with attention_taken(base.config, takeover), function_wrapped(module, ROTARY_NAME, _noting):
        token = _RUN.set(run)
        try:
            base(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                use_cache=False,
            )
        except _Done:
            pass
        finally:
            _RUN.reset(token)
    missing = sorted(run.wanted - run.seen)
    if missing:
        raise MismatchError(
            f"{type(base).__name__} did not run the attention of layer {missing[0]}"
            " through transformers' AttentionInterface; m3build cannot take its keys and values."
        )


def _attention(
    run: _Run,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> Attended:
    """Hands a wanted layer over, then runs the library's own attention."""
    layer = layer_of(module)
    check_standard(module, query, key, value, rest)
    if layer in run.seen:
        raise MismatchError(
            f"{type(module).__name__} runs attention twice in one layer; m3build knows standard attention."
        )
    run.seen.add(layer)
    before, after, run.before, run.after = run.before, run.after, None, None
    if layer in run.wanted:
        unrotated = _before_rope(module, run, query, key, before, after)
        run.receive(
            LayerCapture(
                layer=layer,
                query=unrotated[0],
                key=unrotated[1],
                rotated_query=query,
                rotated_key=key,
                value=value,
                scaling=float(query.shape[-1]) ** -0.5 if scaling is None else float(scaling),
                softcap=rest.get("softcap"),
                sliding_window=rest.get("sliding_window"),
            )
        )
        del unrotated
    if layer == run.deepest and run.stop:
        raise _Done
    del before, after
    attend: Callable[..., Attended] = sdpa_attention_forward
    if rest.get("softcap") is not None:
        # SDPA knows no soft-cap; the modelling module's own eager function does, and adds its mask to the
        # logits.
        attend = eager_attention(module)
        attention_mask = _additive(attention_mask, query)
    return attend(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest)


def _additive(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
    """SDPA's mask (True = attend; None = causal) as one that is added to logits, in the query's dtype."""
    if mask is None:
        tokens = query.shape[-2]
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def layer_of(module: torch.nn.Module) -> int:
    """Number of the layer that an attention module belongs to. Raises MismatchError if it does not say."""
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise MismatchError(
            f"{type(module).__name__} does not say which layer it is (layer_idx); m3build needs to know."
        )
    return layer


def check_standard(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rest: dict[str, Any]
) -> None:
    """Refuse attention that the rules do not describe. Raises MismatchError naming the class."""
    name = type(module).__name__
    strange = sorted(k for k, v in rest.items() if v is not None and k not in _STANDARD_ARGUMENTS)
    if strange:
        raise MismatchError(
            f"{name} passes {', '.join(strange)} to its attention; m3build knows standard attention only."
        )
    if not getattr(module, "is_causal", True) or rest.get("is_causal") is False:
        raise MismatchError(f"{name} is not causal; memories need a decoder-only model.")
    if key.shape != value.shape or query.shape[-1] != key.shape[-1] or query.shape[1] % key.shape[1]:
        raise MismatchError(
            f"{name} has queries {tuple(query.shape)}, keys {tuple(key.shape)}, values {tuple(value.shape)}"
            " (batch, heads, tokens, dimensions); m3build needs one head dimension for all three."
        )


def _before_rope(
    module: torch.nn.Module,
    run: _Run,
    query: torch.Tensor,
    key: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    after: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key as they were before RoPE: what went into the rotary function if its result is what the
    attention got."""
    if before is None or after is None:
        # No rotation happened in this layer. Right for a layer without position encoding and for learned
        # absolute positions; a model whose rotary function has another name must not slip through.
        if not run.has_rotary and getattr(getattr(module, "config", None), "rope_parameters", None):
            raise MismatchError(
                f"{type(module).__name__} rotates queries and keys in a function that m3build does not know"
                f" (its module has no {ROTARY_NAME})."
            )
        return query, key
    if after[0] is not query or after[1] is not key:
        raise MismatchError(
            f"{type(module).__name__} changes queries or keys between RoPE and attention;"
            " m3build cannot tell what they were before RoPE."
        )
    return before


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    """A rotary function that notes, for a thread that captures, what goes in and what comes out."""

    def apply_rotary_pos_emb(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rotated = original(q, k, *args, **kwargs)
        run = _RUN.get()
        if run is not None:
            run.before, run.after = (q, k), tuple(rotated)
        return rotated

    return apply_rotary_pos_emb
