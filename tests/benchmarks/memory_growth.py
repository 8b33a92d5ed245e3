"""Peak memory of ``compile`` against the size of the corpus, every chunk unique.

    python tests/benchmarks/memory_growth.py                          # 100 MB and 1 GB of text
    python tests/benchmarks/memory_growth.py --megabytes 4 16 --shard-chunks 256

The base is the peak of a build of a few kilobytes: interpreter, libraries, model. Above it, the larger corpus
may need at most 5 % more than the smaller one. Peaks are those of the whole process, as the operating system
accounts them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Long words are few tokens: text goes through quickly, and what is measured is the compiler's own memory.
WORDS = 20_000
DOCUMENT_CHARACTERS = 20_000


def write_corpus(path: Path, size: int) -> None:
    """JSON lines of ``size`` bytes of text; no two chunks are equal, for every sentence carries a number of
    its own.
    """
    rng = random.Random(size)
    syllables = [
        "ta",
        "mo",
        "ri",
        "ken",
        "sol",
        "ve",
        "nu",
        "pa",
        "lin",
        "dor",
        "ba",
        "shi",
        "gre",
        "un",
        "ex",
    ]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(WORDS)]
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            sentences: list[str] = []
            length = 0
            while length < DOCUMENT_CHARACTERS:
                sentence = f"{' '.join(rng.choices(words, k=14)).capitalize()} {number}."
                number += 1
                sentences.append(sentence)
                length += len(sentence) + 1
            text = " ".join(sentences)
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text)


def write_model(directory: Path, corpus: Path) -> None:
    """A one-layer random model with a tokenizer of 8,192 tokens trained on a part of the corpus."""
    import torch
    from models import tiny_config
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with corpus.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(100), file, strict=False)]
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(directory)
    torch.manual_seed(0)
    config = tiny_config(
        "llama",
        vocab_size=8192,
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


# What glibc keeps of freed memory differs by some 10 MB from run to run. So it gives it back: what is left is
# what the build holds, and differs by one.
GIVES_BACK = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}

# The child looks at its own peak: what the parent is told (ru_maxrss) can be the parent's own at the fork.
CHILD = """
import atexit, resource, sys
from pathlib import Path
from m3build_cli.main import run

def report():
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        peak = int(line.split()[1]) * 1024
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(sys.argv[1]).write_text(str(peak))

atexit.register(report)
run(sys.argv[2:])
"""


def peak_of_build(
    source: Path, bank: Path, model: Path, shard_chunks: int | None, log: Path, options: Sequence[str] = ()
) -> tuple[int, float]:
    """Peak resident bytes and seconds of ``m3build compile`` in a process of its own."""
    peak = log.with_suffix(".peak")
    command = [sys.executable, "-c", CHILD, str(peak), "compile", str(source), "-o", str(bank)]
    command += ["--model", str(model), "--sparse-tokens", "2", "--progress", "lines", "--json"]
    # One process, whose peak is that of the build.
    command += ["--workers", "1", *options]
    if shard_chunks:
        command += ["--shard-chunks", str(shard_chunks)]
    began = time.perf_counter()
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **GIVES_BACK}, check=False
        )
    if done.returncode:
        raise SystemExit(f"compile ended with {done.returncode}:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return int(peak.read_text()), time.perf_counter() - began


def measure(sizes: list[int], shard_chunks: int | None, place: Path) -> tuple[int, list[int]]:
    """Base and peaks above it, in bytes, for corpora of ``sizes`` bytes."""
    model = place / "model"
    tiny = place / "tiny.jsonl"
    write_corpus(tiny, 3_000_000)
    write_model(model, tiny)
    write_corpus(tiny, 20_000)
    base, _ = peak_of_build(tiny, place / "tiny-bank", model, shard_chunks, place / "tiny.log")
    print(f"base: {base / 1e6:,.0f} MB", flush=True)
    above: list[int] = []
    for size in sizes:
        source = place / f"{size}.jsonl"
        write_corpus(source, size)
        peak, seconds = peak_of_build(
            source, place / f"{size}-bank", model, shard_chunks, place / f"{size}.log"
        )
        above.append(peak - base)
        print(
            f"{size / 1e6:,.0f} MB of text: peak {peak / 1e6:,.0f} MB, {(peak - base) / 1e6:,.0f} MB "
            f"above the base, {seconds:,.0f} s",
            flush=True,
        )
    return base, above


def main() -> None:
    """Measure, print, and fail if memory grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, nargs=2, default=[100, 1000])
    parser.add_argument("--shard-chunks", type=int)
    parser.add_argument("--directory", type=Path, help="where to work; a temporary directory otherwise")
    arguments = parser.parse_args()
    sizes = [round(number * 1e6) for number in arguments.megabytes]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        _, above = measure(sizes, arguments.shard_chunks, Path(place))
    growth = above[1] / above[0] - 1
    print(f"growth above the base: {100 * growth:+.1f} % for {sizes[1] / sizes[0]:.0f} times the text")
    if growth >= 0.05:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
