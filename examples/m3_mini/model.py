"""``python -m examples.m3_mini.model CORPUS.jsonl DIR``: m3-mini's tokenizer, and weights before training.

The proportions are the paper's as far as the size allows: grouped queries, about as many layers as heads, no
bias. Embeddings are tied; at 8,192 tokens they are a third of the 4.7 million parameters.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8192
CONTEXT = 2048
TOKENIZER_CHARACTERS = 2_500_000  # of each family: a large one must not take all merges


def texts(corpus: Path, most: int) -> Iterator[str]:
    """Texts of the corpus, up to ``most`` characters of each family."""
    seen: Counter[str] = Counter()
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if seen[document["family"]] < most:
                seen[document["family"]] += len(document["text"])
                yield document["text"]


def make_tokenizer(corpus: Iterator[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which encodes any text; a digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=CONTEXT
    )


def make_model(vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """Eight layers, six query and two key-value heads of size 32; random weights from a fixed seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Write the model directory named on the command line."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m examples.m3_mini.model CORPUS.jsonl DIRECTORY")
    corpus, directory = Path(sys.argv[1]), Path(sys.argv[2])
    make_tokenizer(texts(corpus, TOKENIZER_CHARACTERS)).save_pretrained(directory)
    model = make_model()
    model.save_pretrained(directory)
    print(f"{directory}: {model.num_parameters():,} parameters, untrained")


if __name__ == "__main__":
    main()
