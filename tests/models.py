"""Small models with random weights and a small tokenizer, made on the spot: for shapes, equality and timing,
never for quality.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_neox")

TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps for a while in the warm sun.",
    "Explicit memories are sparse attention keys and values of short reference texts.",
    "A bank is a directory; nothing in it is ever overwritten. Versions are numbered from one.",
    "def compile(sources, bank):\n    for document in sources:\n        yield from cut(document)\n",
    "记忆是稀疏的注意力键和值。参考文本很短，最多一百二十八个词元。",
    "日本語の文章も、正しく切り分けられます。次の文です！",
]


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 384 tokens that encodes any text; ``<s>`` is its BOS, put before text on
    request only.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_config(arch: str, **over: Any) -> Any:
    """A transformers config of four layers, width 64, four query heads and (where the architecture allows it)
    two key-value heads.
    """
    from transformers import AutoConfig

    shape: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    if arch != "gpt_neox":
        shape["num_key_value_heads"] = 2
    if arch in ("llama", "mistral", "qwen3", "gemma2", "gemma3"):
        shape["head_dim"] = 16
    if arch in ("gemma2", "gemma3"):
        shape["sliding_window"] = 256
    shape.update(over)
    return AutoConfig.for_model("gemma3_text" if arch == "gemma3" else arch, **shape)


def tiny_model(arch: str, seed: int = 0, **over: Any) -> Any:
    """A causal-LM model with random float32 weights, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(arch, **over))
    return model.eval()


def save_tiny_model(directory: Path, arch: str = "llama", seed: int = 0, **over: Any) -> Path:
    """Write a tiny model and the tiny tokenizer as a transformers directory with safetensors; returns the
    directory.
    """
    tiny_model(arch, seed, **over).save_pretrained(directory, safe_serialization=True)
    tiny_tokenizer().save_pretrained(directory)
    return directory
