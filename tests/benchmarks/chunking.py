"""What cutting costs beside tokenizing, and how full the chunks are.

    python tests/benchmarks/chunking.py TOKENIZER.json PATH [--trained 8000] [--repeat 5]

PATH is a text file or a directory of text files (.gz too). In one run, in one thread, prints the speed of
the bare tokenizer over whole documents (ids only, the result dropped at once), with and without offsets,
then of ``Chunker`` over the same documents (everything up to chunks with ids and ends), and their ratio:
medians of CPU time over rounds in which they take turns, so that a busy machine disturbs all alike.
``--trained N`` does the same with a byte-level BPE of N tokens trained on the documents.
"""

from __future__ import annotations

import argparse
import gzip
import html
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Read by the tokenizers library when it is imported.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from m3build.chunking import Chunker, ChunkOptions
from m3build.records import Document

_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("tokenizer", type=Path)
    options.add_argument("path", type=Path)
    options.add_argument("--trained", type=int, default=0)
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--title", action="store_true")
    arguments = options.parse_args()
    documents = [
        Document(str(index), "-", index, text) for index, text in enumerate(read_texts(arguments.path))
    ]
    texts = [document.text for document in documents]
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts)} documents, {size / 1e6:.2f} MB, {sum(map(len, texts)) / 1e6:.2f} M characters")
    tokenizers = {arguments.tokenizer.name: Tokenizer.from_file(str(arguments.tokenizer))}
    if arguments.trained:
        tokenizers[f"byte-level BPE, {arguments.trained} tokens"] = trained(texts, arguments.trained)
    for name, tokenizer in tokenizers.items():
        report(name, tokenizer, documents, size, arguments.repeat, ChunkOptions(title=arguments.title))


def report(
    name: str,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    size: int,
    repeat: int,
    options: ChunkOptions,
) -> None:
    chunker = Chunker(tokenizer, options)
    encoded = CountingEncoder(chunker)
    limit = options.reference_tokens
    sizes: list[int] = []
    filled: list[int] = []

    def cut() -> None:
        sizes.clear()
        filled.clear()
        for _, chunks in chunker.cut_many(documents):
            tokens = [len(chunk.token_ids) for chunk in chunks]
            sizes.extend(tokens)
            filled.extend(tokens[:-1])

    def bare(encode: Callable[..., Any]) -> None:
        for document in documents:
            encode([document.text], add_special_tokens=False)

    work: dict[str, Callable[[], None]] = {
        "tokenizer": lambda: bare(tokenizer.encode_batch),
        "tokenizer, no offsets": lambda: bare(tokenizer.encode_batch_fast),
        "chunking": cut,
    }
    seconds: dict[str, list[float]] = {step: [] for step in work}
    for _ in range(repeat):
        for step, do in work.items():
            begun = time.process_time()
            do()
            seconds[step].append(time.process_time() - begun)
    print(f"\n{name}")
    for step, taken in seconds.items():
        share = statistics.median(own / bare for own, bare in zip(taken, seconds["tokenizer"], strict=True))
        speed = size / statistics.median(taken) / 1e6
        print(f"  {step:24s} {speed:6.2f} MB/s   {share:.2f} of the tokenizer's time")
    characters = encoded.characters / repeat / sum(len(document.text) for document in documents)
    print(f"  {len(sizes)} chunks, {sum(sizes)} tokens")
    print(f"  encoded: {encoded.texts / repeat:.0f} texts, {characters:.3f} of the characters there are")
    if filled:
        mean = sum(filled) / len(filled)
        print(f"  chunks that are not a document's last: {mean:.1f} of {limit} tokens on average")
        full = [
            sum(tokens > share * limit for tokens in filled) / len(filled) for share in (0.25, 0.5, 0.75, 0.9)
        ]
        print("  with over 25, 50, 75, 90 % of the tokens:", ", ".join(f"{part:.1%}" for part in full))


class CountingEncoder:
    """Stands before a chunker's encoder and counts what passes."""

    def __init__(self, chunker: Chunker) -> None:
        self._encoder: Any = chunker._encoder
        self.characters = self.texts = 0
        chunker._encoder = self  # type: ignore[assignment]

    def encode(self, texts: Sequence[str]) -> Any:
        self.characters += sum(map(len, texts))
        self.texts += len(texts)
        return self._encoder.encode(texts)


def read_texts(path: Path) -> list[str]:
    files = (
        sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        if path.is_dir()
        else [path]
    )
    texts = []
    for file in files:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        if ".html" in file.name:
            text = html.unescape(_TAGS.sub("", text))
        texts.append(text)
    return texts


def trained(texts: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if __name__ == "__main__":
    main()
