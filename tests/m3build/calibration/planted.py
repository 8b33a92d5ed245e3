"""A model whose attention is known in advance: two layers of one head each, weights written by hand.

Tokens are one-hot in the residual stream. The head of layer 0 attends to the previous token, by rotary
frequencies alone, and writes down which it was. The head of layer 1 looks for the place after an earlier
occurrence of the current token and passes on the token that stands there, which the output head predicts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 24
FIRST_WORD = 2  # after <s> and <unk>
_OWN, _BEFORE, _COPIED, _CONSTANT = 0, 24, 48, 72
_WIDTH, _HEAD, _THETA = 128, 64, 1e30
# Pairs of head dimensions with a frequency that tells positions apart; those after them hardly turn at all.
_TURNING, _STILL = range(3), 6


def planted_model() -> Any:
    """A LlamaForCausalLM with these weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=_HEAD,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    words = torch.arange(VOCABULARY)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "norm" in name else 0.0)
        embedding = model.get_input_embeddings().weight
        embedding[words, _OWN + words] = 1.0
        embedding[:, _CONSTANT] = 1.0
        first, second = (layer.self_attn for layer in model.model.layers)
        for pair in _TURNING:
            # q at angle −f, k at angle 0: the logit is the cosine of f·(distance − 1).
            frequency = _THETA ** (-2 * pair / _HEAD)
            first.q_proj.weight[pair, _CONSTANT] = 5 * math.cos(-frequency)
            first.q_proj.weight[pair + _HEAD // 2, _CONSTANT] = 5 * math.sin(-frequency)
            first.k_proj.weight[pair, _CONSTANT] = 5.0
        first.v_proj.weight[words, _OWN + words] = 1.0
        first.o_proj.weight[_BEFORE + words, words] = 0.125
        second.q_proj.weight[_STILL + words, _OWN + words] = 3.0
        second.k_proj.weight[_STILL + words, _BEFORE + words] = 3.0
        second.v_proj.weight[words, _OWN + words] = 1.0
        second.o_proj.weight[_COPIED + words, words] = 1.0
        model.lm_head.weight[words, _COPIED + words] = 2.0
    return model


def save_planted(directory: Path) -> Path:
    """The model and a tokenizer of 22 words as a transformers directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    planted_model().save_pretrained(directory)
    names = ["<s>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - FIRST_WORD))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(
        directory
    )
    return directory
