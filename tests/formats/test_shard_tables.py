from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_bank import DIM, ROW_BYTES, chunk_rows, document_rows, embedding_array, memory_array

from m3build_formats import layout
from m3build_formats.bank import open_bank
from m3build_formats.data_directory import DataDirectory
from m3build_formats.errors import InputError, UsageError
from m3build_formats.shard_tables import (
    ChunkRow,
    DocumentRow,
    Occurrence,
    write_chunks,
    write_documents,
    write_embeddings,
    write_index,
    write_memories,
)


def grouped(array: np.ndarray, cuts: Sequence[int]) -> Iterator[np.ndarray]:
    yield from np.split(array, sorted(cut % (len(array) + 1) for cut in cuts))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 300),
    width=st.sampled_from([1, 7, 64, 5000, 2_000_000]),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    view=st.sampled_from(["plain", "strided", "fortran", "offset"]),
)
def test_memories_bytes_depend_on_the_rows_alone(
    tmp_path: Path, rows: int, width: int, cuts: list[int], view: str
) -> None:
    rows = min(rows, 3) if width > 10**6 else rows
    array = np.random.default_rng(rows).integers(0, 256, (rows, width), dtype=np.uint8)
    shown = {
        "plain": array,
        "strided": np.repeat(array, 2, axis=0)[::2],
        "fortran": np.asfortranarray(array),
        "offset": np.concatenate([np.full((1, width), 9, np.uint8), array, np.full((1, width), 7, np.uint8)])[
            1:-1
        ],
    }[view]
    with DataDirectory(tmp_path) as data:
        assert write_memories(data, grouped(shown, cuts), width) == write_memories(data, [array], width)


def test_embeddings_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    array = embedding_array(50_000)
    with DataDirectory(tmp_path) as data:
        whole = write_embeddings(data, [array], DIM)
        assert whole == write_embeddings(data, np.array_split(array, 333), DIM)
        assert whole == write_embeddings(data, [array[:0], array[:1], array[1:], array[:0]], DIM)
        assert whole.batches is not None
        assert whole.batches.rows == 4096
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / whole.name))).read_all()
    flat = table.column("embedding").combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat.view(np.uint16), array.reshape(-1).view(np.uint16))


def test_chunk_and_document_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    chunks = chunk_rows(1500)
    documents = document_rows(chunks) * 700
    with DataDirectory(tmp_path) as data:
        entry = write_chunks(data, chunks)
        assert entry == write_chunks(data, iter(chunks))
        assert entry == write_chunks(
            data, (replace(chunk, token_ends=np.array(chunk.token_ends, np.uint16)) for chunk in chunks)
        )
        assert entry.batches is not None
        assert (entry.batches.rows, len(entry.batches.ends)) == (512, 3)
        assert write_documents(data, documents) == write_documents(data, iter(documents))


def test_no_byte_of_neighbouring_memory_gets_into_a_file(tmp_path: Path) -> None:
    secret = np.full((4096, 3), 0xAB, np.uint8)
    secret[:5] = 1
    with DataDirectory(tmp_path) as data:
        entry = write_memories(data, [secret[:5]], 3)
    assert b"\xab" not in (tmp_path / entry.name).read_bytes()


def test_rows_per_batch_follow_from_the_width() -> None:
    assert layout.fixed_width_rows_per_batch(1) == 4096
    assert layout.fixed_width_rows_per_batch(256) == 4096
    assert layout.fixed_width_rows_per_batch(40_832) == 16
    assert layout.fixed_width_rows_per_batch(1 << 20) == 1
    assert layout.fixed_width_rows_per_batch(1 << 28) == 1


documents_strategy = st.builds(
    DocumentRow,
    id=st.text(min_size=1, max_size=20),
    source=st.text(max_size=20),
    position=st.integers(0, 2**64 - 1),
    title=st.text(max_size=20),
    metadata=st.just('{"a":1}'),
    sha256=st.binary(min_size=32, max_size=32),
    characters=st.integers(0, 2**64 - 1),
    chunks=st.integers(0, 2**32 - 1),
    part=st.integers(0, 2**32 - 1),
)
chunks_strategy = st.builds(
    ChunkRow,
    id=st.binary(min_size=32, max_size=32),
    text=st.text(max_size=50),
    title=st.text(max_size=10),
    token_ends=st.lists(st.integers(0, 65535), max_size=255).map(tuple),
    occurrences=st.lists(
        st.builds(
            Occurrence,
            document=st.text(max_size=10),
            row=st.integers(0, 2**32 - 1),
            start=st.integers(0, 2**64 - 1),
            end=st.integers(0, 2**64 - 1),
        ),
        max_size=4,
    ).map(tuple),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(documents_strategy, max_size=5), chunks=st.lists(chunks_strategy, max_size=5))
def test_documents_and_chunks_come_back_as_they_were(
    tmp_path: Path, documents: list[DocumentRow], chunks: list[ChunkRow]
) -> None:
    from m3build_formats.arrow_file import CheckedArrowFile
    from m3build_formats.shard import _chunk_row, _document_row
    from m3build_formats.shard_schema import CHUNKS_SCHEMA, DOCUMENTS_SCHEMA

    with DataDirectory(tmp_path) as data:
        entries = write_documents(data, documents), write_chunks(data, chunks)
    files = [
        CheckedArrowFile(entry, memoryview((tmp_path / entry.name).read_bytes()), schema)
        for entry, schema in zip(entries, (DOCUMENTS_SCHEMA, CHUNKS_SCHEMA), strict=True)
    ]
    assert [_document_row(b, n) for b in files[0].batches() for n in range(b.num_rows)] == documents
    assert [_chunk_row(b, n) for b in files[1].batches() for n in range(b.num_rows)] == chunks


def test_pandas_and_polars_open_a_shard(shared_bank: Path) -> None:
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    with open_bank(shared_bank) as opened:
        for _, entry in opened.shards[0].entry.files():
            if entry.batches is not None:
                path = str(shared_bank / "data" / entry.name)
                assert len(pandas.read_feather(path)) == entry.rows
                assert len(polars.read_ipc(path)) == entry.rows


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "x" * 4097),
        ("source", "é" * 2049),
        ("title", "x" * 65_537),
        ("metadata", "x" * (2**20 + 1)),
    ],
)
def test_a_document_over_a_limit_is_an_input_error(tmp_path: Path, field: str, value: str) -> None:
    row = DocumentRow("d", "s", 0, "t", "{}", bytes(32), 1, 1)
    with DataDirectory(tmp_path) as data, pytest.raises(InputError, match=field):
        write_documents(data, [replace(row, **{field: value})])
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_over_a_limit_is_an_input_error(tmp_path: Path) -> None:
    chunk = ChunkRow(bytes(32), "text", "", (4,), ())
    with DataDirectory(tmp_path) as data:
        with pytest.raises(InputError, match="256 tokens"):
            write_chunks(data, [replace(chunk, token_ends=(1,) * 256)])
        with pytest.raises(InputError, match="65535 characters"):
            write_chunks(data, [replace(chunk, text="x" * 65_536)])
        with pytest.raises(InputError, match="memory row"):
            write_memories(data, [], 0)
        with pytest.raises(InputError, match="dimensions"):
            write_embeddings(data, [], 0)
        with pytest.raises(UsageError, match="not allowed"):
            write_index(data, b"IxEvil")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.uint8),
        np.zeros((2, 4), np.int8),
        np.zeros(4, np.uint8),
        np.zeros((1, 2, 4), np.uint8),
    ],
    ids=str,
)
def test_an_array_of_another_shape_or_type_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    with DataDirectory(tmp_path) as data, pytest.raises(ValueError, match="expected"):
        write_memories(data, [array], 4)
    assert list(tmp_path.iterdir()) == []


def test_memory_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    from sample_bank import bank_files, contents, write_shard

    from m3build_formats.commit import BankWriter

    chunks = chunk_rows(9000)
    memories = memory_array(chunks)
    with BankWriter(tmp_path / "b") as writer:
        writer.commit(contents([write_shard(writer, chunks, memories=memories)], bank_files(writer)), None)
    with open_bank(tmp_path / "b") as opened:
        shard = opened.shards[0]
        for wanted in ([], [0], [8999, 0, 4096, 4095, 0, 17], range(0, 9000, 7), np.arange(8999, -1, -1)):
            found = shard.memories(wanted)
            assert found.dtype == np.uint8
            assert np.array_equal(found, memories[np.asarray(wanted, np.int64)])
        assert np.array_equal(np.concatenate(list(shard.memory_batches())), memories)
        for wrong in ([9000], [-1], [0, 10**15]):
            with pytest.raises(IndexError):
                shard.memories(wrong)
        assert found.shape == (9000, ROW_BYTES)
        assert np.array_equal(np.concatenate(list(shard.embeddings())), embedding_array(9000))
        assert [chunk.id for chunk in shard.chunks()] == [chunk.id for chunk in chunks]
        assert shard.chunk(8999) == chunks[8999]
        assert np.concatenate(list(shard.chunk_ids())).tobytes() == b"".join(chunk.id for chunk in chunks)


def test_many_threads_read_the_same_rows(shared_bank: Path) -> None:
    failures: list[BaseException] = []
    with open_bank(shared_bank) as opened:
        shard = opened.shards[0]
        expected = shard.memories(range(shard.rows))
        with open_bank(shared_bank) as fresh:

            def read(seed: int) -> None:
                random = np.random.default_rng(seed)
                try:
                    for _ in range(50):
                        rows = random.integers(0, shard.rows, 10)
                        assert np.array_equal(fresh.shards[0].memories(rows), expected[rows])
                        assert fresh.shards[0].chunk(int(rows[0])) == shard.chunk(int(rows[0]))
                except BaseException as error:  # noqa: BLE001
                    failures.append(error)

            threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert failures == []


def test_reference_text_is_that_of_the_compiler() -> None:
    records = pytest.importorskip("m3build.records")
    for title, text in (("", "a"), ("t", "a"), ("t", "")):
        assert layout.reference_text(title, text) == records.reference_text(title, text)
    assert (
        hashlib.sha256(layout.reference_text("t", "a").encode()).hexdigest()
        == hashlib.sha256(b"t\na").hexdigest()
    )
