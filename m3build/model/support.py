"""Which models can write memories: decoder-only text models with standard attention that goes through
transformers' interface.

What the config or the class tells is refused before any weight is read; what only a forward pass tells
(sinks, odd head dimensions, changes between RoPE and attention) is refused by :mod:`m3build.capture` in the
probe that loading ends with.
"""

from __future__ import annotations

from typing import Any

from m3build.model.shape import ModelFacts
from m3build_formats.errors import MismatchError

# Layer types whose keys and values are those of ordinary causal attention.
_ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})


def model_facts(config: Any, name: str) -> ModelFacts:
    """The sizes in a config. Raises MismatchError if it lacks them, or has them by layer."""
    try:
        query_heads, hidden = int(config.num_attention_heads), int(config.hidden_size)
        kv_heads = getattr(config, "num_key_value_heads", None)
        intermediate = getattr(config, "intermediate_size", None)
        return ModelFacts(
            name=name,
            architecture=str(config.model_type),
            layers=int(config.num_hidden_layers),
            query_heads=query_heads,
            kv_heads=query_heads if kv_heads is None else int(kv_heads),
            head_dim=int(getattr(config, "head_dim", None) or hidden // query_heads),
            hidden_size=hidden,
            intermediate_size=intermediate if isinstance(intermediate, int) else 4 * hidden,
            vocab_size=int(config.vocab_size),
        )
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        # RuntimeError: transformers' answer for a config whose layers differ in such a number.
        raise MismatchError(
            f"{name} is a {config.model_type} model, whose config does not give one number of attention heads"
            " and dimensions for all layers; it cannot write memories."
        ) from error


def check_supported(config: Any, name: str, trust_remote_code: bool) -> None:
    """Raises MismatchError, naming model and architecture, for a model that cannot write memories."""
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = str(config.model_type)

    def refuse(why: str) -> MismatchError:
        return MismatchError(f"{name} is a {kind} model, {why}; m3build takes decoder-only text models.")

    if getattr(config, "is_encoder_decoder", False):
        raise refuse("an encoder-decoder")
    if config.get_text_config() is not config:
        raise refuse("which is made of several models")
    # GPT-NeoX has is_decoder False too, so the flag counts only where the architecture is also used as an
    # encoder.
    if getattr(config, "is_decoder", None) is False and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise refuse("an encoder")
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", None):
        raise refuse("whose attention is not causal")
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if strange:
        raise refuse(f"whose layers are not all attention ({', '.join(strange)})")
    if "auto_map" in config.to_dict() and trust_remote_code:
        return
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refuse("which transformers has no causal language model for")
    cls: Any = AutoModel._model_mapping.get(type(config), None)
    if cls is None or not cls._can_set_attn_implementation():
        raise MismatchError(
            f"{name} is a {kind} model, whose attention does not go through transformers' AttentionInterface;"
            " m3build cannot take its keys and values."
        )
