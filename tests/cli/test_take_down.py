"""A take-down by the commands alone: what was excluded leaves every file, what a trained file may still hold
of it is said, and a new training leaves that too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from small_corpus import sentence

from m3build.codec.codec import Codec
from m3build.embed.ngrams import count_ngrams, fold
from m3build_cli.main import run
from m3build_formats.bank import open_bank, read_manifest

# Words and signs that no other text has, so that some of its keys and values lie far from all others.
SECRET = (
    "Zarquon §¶¤ keeps ¢£¥ the vermilion ledger ÀÈÌ under ßüöä flagstone 7391#%&@ of Quillhaven; "
    "вот жщцю λμνξ.\n\n"
)


def say(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that ends well prints on both outputs."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out + printed.err


def write_texts(corpus: Path) -> None:
    (corpus / "letters").mkdir(parents=True)
    for number in range(6):
        paragraphs = (" ".join(sentence(number * 40 + i * 8 + j) for j in range(8)) for i in range(2))
        (corpus / f"{number}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    for number in range(2):
        text = SECRET.replace("7391", f"73{number}") * (3 + number)
        (corpus / "letters" / f"secret-{number}.txt").write_text(text, encoding="utf-8")
    (corpus / "letters" / "broken.jsonl").write_text('{"text": 7}\n', encoding="utf-8")


def every_byte(bank: Path) -> dict[str, bytes]:
    """All files below a bank, compressed ones decompressed too."""
    found = {path.name: path.read_bytes() for path in bank.rglob("*") if path.is_file()}
    unpack = zstandard.ZstdDecompressor()
    zipped = {f"{name} unpacked": data for name, data in found.items() if name.endswith(".zst")}
    return found | {name: unpack.decompress(data, max_output_size=1 << 26) for name, data in zipped.items()}


def holding(bank: Path, needles: dict[str, bytes]) -> dict[str, list[str]]:
    """Needles that are somewhere in a bank, and the kinds of the files that hold them."""
    files = every_byte(bank)
    found = {
        name: sorted({file.partition(".")[2] for file, data in files.items() if needle in data})
        for name, needle in needles.items()
    }
    return {name: kinds for name, kinds in found.items() if kinds}


def rows_of_the_secret(bank: Path) -> dict[str, bytes]:
    """Text, id, codes and embedding of every chunk of an excluded document, by kind and number."""
    needles: dict[str, bytes] = {}
    with open_bank(bank) as opened:
        for shard in opened.shards:
            vectors: Any = np.concatenate(list(shard.embeddings()))
            for row, chunk in enumerate(shard.chunks()):
                if any(place.document.startswith("letters/") for place in chunk.occurrences):
                    number = len(needles) // 4
                    needles[f"text {number}"] = chunk.text.encode()
                    needles[f"id {number}"] = bytes(chunk.id)
                    needles[f"codes {number}"] = shard.memories([row])[0].tobytes()
                    needles[f"embedding {number}"] = vectors[row].astype(np.float16).tobytes()
    return needles


def centroids_that_are_vectors(bank: Path, exact: Path) -> dict[str, bytes]:
    """Bytes of the codec's centroids that are (to rounding) a key or value of a memory in ``exact``, an
    unquantized bank of the secret alone."""
    with open_bank(bank) as opened:
        arrays = opened.codec_arrays()
    with open_bank(exact) as opened:
        codec = Codec.from_arrays({}, opened.manifest.codec)
        rows: Any = np.concatenate([rows for shard in opened.shards for rows in shard.memory_batches()])
    positions = rows[:, codec.row_bytes :].reshape(len(rows), len(codec.heads), codec.slots)
    found: dict[str, bytes] = {}
    for side, vectors in enumerate(codec.decode_rows(rows[:, : codec.row_bytes], positions)):
        scaled = (vectors - arrays["mean"][side][:, None]) / arrays["scale"][side][:, None, None]
        blocks: Any = scaled[positions != 255].reshape(-1, *arrays["product"].shape[1::2])
        for part, centroids in enumerate(arrays["product"][side]):
            for number, centroid in enumerate(centroids):
                if np.abs(blocks[:, part] - centroid).max(1).min() < 1e-6:
                    found[f"centroid {side}/{part}/{number}"] = centroid.tobytes()
    return found


def buckets_in(*texts: str) -> set[int]:
    """The n-grams of texts, as the embedder counts them."""
    return set(count_ngrams([fold(text) for text in texts]).buckets.tolist())


def buckets_of(bank: Path) -> set[int]:
    """The n-grams whose frequencies a bank's embedder holds."""
    with open_bank(bank) as opened:
        return set(opened.embedder_arrays()["lexical.buckets"].tolist())


def test_what_is_taken_down_leaves_every_file_and_traces_in_trained_ones_are_told(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, bank = tmp_path / "corpus", tmp_path / "bank"
    write_texts(corpus)
    compiled = ["compile", corpus, "-o", bank, "--max-rejects", "50%", "--progress", "none"]
    shape = ["--model", tiny_llama, "--dtype", "bfloat16", "--shard-chunks", "8"]
    say(capsys, *compiled, *shape, "--codec", "PQ2x7")
    alone = ["compile", corpus / "letters", "-o", tmp_path / "exact", "--max-rejects", "50%"]
    say(capsys, *alone, *shape, "--codec", "none", "--progress", "none")

    rows = rows_of_the_secret(bank)
    rows["reject"] = b"broken.jsonl"
    centroids = centroids_that_are_vectors(bank, tmp_path / "exact")
    assert centroids, "the test must meet the case: a centroid with one member is that member"
    assert holding(bank, rows).keys() == rows.keys()
    assert holding(bank, centroids).keys() == centroids.keys()
    public = [path.read_text(encoding="utf-8") for path in corpus.glob("*.txt")]
    ngrams = buckets_in(SECRET) - buckets_in(*public)
    assert ngrams & buckets_of(bank)

    told = say(capsys, *compiled, "--exclude", "letters/*")
    assert "gc --purge" in told
    assert "centroids of the codec stand for fewer than three training vectors" in told
    purged = json.loads(say(capsys, "gc", bank, "--purge", "--json"))
    assert holding(bank, rows) == {}
    assert purged["codec"]["trained_on_what_left"] == purged["embedder"]["trained_on_what_left"] == "may"
    assert "centroids stand for fewer than three training vectors" in purged["codec"]["reason"]
    assert {kind for kinds in holding(bank, centroids).values() for kind in kinds} == {"codec.arrow"}

    say(capsys, *compiled, "--retrain")
    purged = json.loads(say(capsys, "gc", bank, "--purge", "--json"))
    assert purged["codec"]["trained_on_what_left"] == purged["embedder"]["trained_on_what_left"] == "no"
    assert holding(bank, {**rows, **centroids}) == {}
    assert not ngrams & buckets_of(bank)
    assert read_manifest(bank).version == 3
    assert "sound" in say(capsys, "verify", bank)
