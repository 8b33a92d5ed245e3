"""A corpus of a few kilobytes and the build that tests of the pipeline make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m3build.api import compile as compile_bank

WORDS = [
    *("memory", "layer", "head", "token", "query", "key", "value", "bank", "shard", "index", "chunk"),
    *("reference", "model", "attention", "search", "text", "file", "version", "write", "read", "build"),
    "codec",
]


def sentence(number: int) -> str:
    """Twelve words and the number, so that no two sentences are equal."""
    words = [WORDS[(number * 7 + i * (1 + number % 5)) % len(WORDS)] for i in range(12)]
    return " ".join(words).capitalize() + f" number {number}."


def write_corpus(directory: Path) -> Path:
    """Twelve documents of a few paragraphs each, one of them in two places, one empty, one Chinese."""
    directory.mkdir()
    for number in range(12):
        text = "\n\n".join(" ".join(sentence(number * 40 + i * 8 + j) for j in range(8)) for i in range(4))
        (directory / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    (directory / "copy-of-00.txt").write_bytes((directory / "00.txt").read_bytes())
    (directory / "empty.txt").write_text("  \n", encoding="utf-8")
    (directory / "zh.md").write_text("# 标题\n\n记忆很短。每段文字最多一百二十八个词元！\n", encoding="utf-8")
    return directory


def write_smaller_corpus(directory: Path) -> Path:
    """Twelve documents of two chunks or so each, and a file of one bad record."""
    directory.mkdir()
    for number in range(12):
        text = " ".join(sentence(number * 40 + i) for i in range(5))
        (directory / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    (directory / "bad.jsonl").write_text('{"text": 1}\n', encoding="utf-8")
    return directory


def build(corpus: Path | list[Path], bank: Path, model: Path, **options: Any) -> Any:
    """Compile with small shards. A new bank gets a codec that is trained at once unless another is named."""
    listed = corpus if isinstance(corpus, list) else [corpus]
    first = {} if (bank / "versions").exists() else {"codec": "SQ8"}
    return compile_bank(listed, bank, model=str(model), **{"shard_chunks": 8, **first, **options})


def data_files(bank: Path) -> dict[str, bytes]:
    """The bytes of every data file of a bank."""
    return {path.name: path.read_bytes() for path in (bank / "data").iterdir()}
