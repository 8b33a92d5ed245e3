"""The two calls of the pipeline, and what they keep out of memory and out of the process."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from m3build.corpus import SourceOptions, read_range, split
from m3build.corpus.source import SourceFile, SourceRange
from m3build.records import Document, Reject


def test_a_file_that_cannot_be_entered_is_one_range_whose_reading_says_why(tmp_path: Path) -> None:
    for form in ("jsonl", "parquet", "arrow"):
        file = SourceFile(str(tmp_path / "gone"), "gone", 10**9, form)
        options = SourceOptions(range_bytes=1)
        assert split(file, options) == [SourceRange(file)]
        (reject,) = read_range(SourceRange(file), options)
        assert isinstance(reject, Reject)
        assert "vanished" in reject.reason


def test_files_and_ranges_travel_between_processes(make: Any, find: Any) -> None:
    (file,), _ = find(make("a.jsonl", '{"text": "a"}\n' * 9))
    parts = split(file, SourceOptions(range_bytes=30))
    assert pickle.loads(pickle.dumps(parts)) == parts  # noqa: S301


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.jsonl", '{"text": "WORDS"}\n'),
        ("a.csv", "WORDS\n"),
        ("a.tsv", "WORDS\n"),
        ("a.json", '{"text": "WORDS"}\n'),
    ],
)
def test_memory_does_not_grow_with_the_file(make: Any, find: Any, name: str, line: str) -> None:
    peaks = []
    head = "" if name == "a.jsonl" else "text\n"
    for count in (500, 2_000):  # both well beyond the size of the buffers
        (file,), _ = find(make(name, head + line.replace("WORDS", "words " * 200) * count))
        options = SourceOptions()
        tracemalloc.start()
        found = sum(
            isinstance(item, Document) for part in split(file, options) for item in read_range(part, options)
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == count
    assert peaks[1] < peaks[0] + 50_000


def test_reading_can_be_given_up_at_any_point_and_closes_the_file(make: Any, find: Any) -> None:
    (file,), _ = find(make("a.jsonl", '{"text": "a"}\n' * 9))
    reading = read_range(SourceRange(file), SourceOptions())
    next(reading)
    assert isinstance(reading, Generator)
    reading.close()
    assert list(reading) == []


def test_reading_text_imports_nothing_heavy(make: Any) -> None:
    path = make("a.jsonl", '{"text": "a"}\n')
    code = f"""
import sys
from m3build.corpus import SourceOptions, discover, read_range, split
for file in discover([{str(path)!r}], print):
    for part in split(file, SourceOptions()):
        print(next(iter(read_range(part, SourceOptions()))).text)
print([name for name in ("pyarrow", "lxml", "torch", "numpy", "zstandard") if name in sys.modules])
"""
    places = [str(Path(__file__).parents[3]), str(Path(__file__).parents[3] / "formats")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {places!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "a\n[]\n"


def test_real_corpora_are_read_without_a_reject(outside_data: Path, read: Any) -> None:
    for directory in ("qa", "corpora"):
        if (outside_data / directory).is_dir():
            found = read(outside_data / directory)
            assert found.documents
            assert not [reject for reject in found.rejects if "text" not in reject.reason]
