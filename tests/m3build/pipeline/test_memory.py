"""Memory does not grow with the corpus: the small form of tests/benchmarks/memory_growth.py."""

from __future__ import annotations

from pathlib import Path

import pytest

SIZES = (1_000_000, 4_000_000)
SHARD_CHUNKS = 64


def test_more_text_takes_no_memory_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.memory_growth import peak_of_build, write_corpus, write_model

    # glibc gives freed memory back at once, so that the peak is what the build held; by default it differs by
    # 20 MB from run to run, which is more than the text.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    source, model = tmp_path / "source.jsonl", tmp_path / "model"
    write_corpus(source, SIZES[1])
    write_model(model, source)
    peaks: list[int] = []
    for size in SIZES:
        write_corpus(source, size)
        # Without a codec: the sample that one is trained on is bounded, but not full at these sizes.
        options = ("--codec", "none")
        log = tmp_path / f"{size}.log"
        peak, _ = peak_of_build(source, tmp_path / f"{size}-bank", model, SHARD_CHUNKS, log, options)
        peaks.append(peak)
    # The text as strings and its tokens as a list would be three bytes for each byte of text. About one was
    # measured: other bounded samples and tables still fill.
    assert peaks[1] - peaks[0] < 3 * (SIZES[1] - SIZES[0]), peaks
