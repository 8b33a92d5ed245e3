"""What reading memories costs a generation: tokens a second with a reader attached beside those without, for
the same model and batch, in one run.

    python tests/benchmarks/reading_cost.py [--tokens 128] [--rounds 3] [--prompt 64]

The model has random weights and at least 100M parameters (timing needs no more); the bank holds memories of
the paper's kind: half of the layers, 8 tokens a head, 5 references a query chunk. Rounds alternate, so that
what else the machine does falls on both. The cache of decoded memories is warm; every retrieval (embed,
search, read) is part of the time. The paper's own figure is 35.2 % less (Table 21).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "formats"), str(ROOT / "cli")]

from models import tiny_tokenizer  # noqa: E402
from small_corpus import sentence  # noqa: E402

import m3build  # noqa: E402

BATCH = 8
LIMIT = 0.10


def make_model(directory: Path) -> LlamaForCausalLM:
    """A Llama of the paper's proportions, 116M parameters, 110M of them outside the embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=16,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model


def main() -> int:
    """1 where reading costs more than the limit, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate for each row")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = make_model(place / "model")
        (place / "corpus").mkdir()
        for number in range(4):
            text = " ".join(sentence(number * 50 + i) for i in range(50))
            (place / "corpus" / f"{number}.txt").write_text(text, encoding="utf-8")
        # A codec that is trained at once: with a warm cache it takes no part in the time.
        m3build.compile(place / "corpus", place / "bank", model=str(place / "model"), codec="SQ8")
        print("compiled", flush=True)
        return compare(model, place / "bank", options.prompt, options.tokens, options.rounds)


def compare(model: LlamaForCausalLM, bank: Path, prompt: int, tokens: int, rounds: int) -> int:
    """Prints both rates of every round and their ratio."""
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
    words = " ".join(sentence(7 * row) for row in range(BATCH * 20))
    ids = torch.tensor(tokenizer.encode(words)[: BATCH * prompt]).view(BATCH, prompt)

    def rate() -> float:
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=1)
        return BATCH * tokens / (time.perf_counter() - start)

    rate()
    ratios: list[float] = []
    with m3build.open_bank(bank) as opened:
        for number in range(rounds + 1):
            plain = rate()
            with m3build.attach(model, opened, tokenizer=tokenizer):
                read = rate()
            # The first round fills the cache.
            if number:
                ratios.append(read / plain)
                print(f"{plain:.1f} tokens/s without memories, {read:.1f} with: {ratios[-1]:.3f}")
        info = opened.cache_info()
    cost = 1 - statistics.median(ratios)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters / 1e6:.0f}M parameters, batch {BATCH}: reading costs {100 * cost:.1f} % of throughput"
        f" (limit {100 * LIMIT:.0f} %; the paper: 35.2 %); cache: {info.hits} hits, {info.misses} misses"
    )
    return int(cost > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
