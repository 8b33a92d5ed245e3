"""Make a stand-in model: a small Llama with random weights and a tokenizer trained on the sample corpus.

It has the shape of a real model directory, so every command runs on it in seconds and without network. Its
weights are random: the memories are right in form and mean nothing.

    python examples/make_stand_in_model.py stand-in/
    m3build compile examples/corpus -o sample-bank/ --model stand-in/
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

CORPUS = Path(__file__).parent / "corpus"
VOCABULARY = 2048


def corpus_texts() -> Iterator[str]:
    """The sample corpus as it is, mark-up included: enough to learn byte pairs from."""
    for path in sorted(CORPUS.rglob("*")):
        if path.is_file():
            yield path.read_text(encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: encodes any text, in any script."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def make_model() -> LlamaForCausalLM:
    """Eight layers, eight query and four key-value heads of size 16; random weights from a fixed seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Write the model directory named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/make_stand_in_model.py DIRECTORY")
    logging.disable_progress_bar()
    directory = Path(sys.argv[1])
    make_model().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    print(
        f"{directory}: a Llama of 8 layers with random weights, for trying the commands; its memories "
        f"mean nothing"
    )


if __name__ == "__main__":
    main()
