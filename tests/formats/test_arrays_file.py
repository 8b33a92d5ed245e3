from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from m3build_formats.arrays_file import ARRAYS_SCHEMA, read_arrays, write_arrays
from m3build_formats.arrow_file import write_table
from m3build_formats.data_directory import DataDirectory
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError
from m3build_formats.layout import ARRAY_DTYPES


def mapped(directory: Path, entry: FileEntry) -> memoryview:
    return memoryview((directory / entry.name).read_bytes())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=10),
        st.sampled_from(ARRAY_DTYPES).flatmap(
            lambda dtype: st_numpy.arrays(
                np.dtype(dtype), st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
            )
        ),
        max_size=4,
    )
)
def test_arrays_come_back_bit_for_bit(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with DataDirectory(tmp_path) as data:
        entry = write_arrays(data, "codec", arrays)
    found = read_arrays(entry, mapped(tmp_path, entry))
    assert list(found) == sorted(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert found[name].dtype.name == array.dtype.name
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable


def test_the_file_depends_on_the_arrays_alone(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    with DataDirectory(tmp_path) as data:
        entry = write_arrays(data, "codec", {"a": array, "b": array[1]})
        assert entry == write_arrays(data, "codec", {"b": array[1].copy(), "a": np.asfortranarray(array)})
        assert entry == write_arrays(
            data, "codec", {"a": array.astype(">f4"), "b": np.repeat(array[1], 2)[::2]}
        )


@pytest.mark.parametrize("dtype", ["bool", "complex64", "object", "datetime64[s]", "S4"])
def test_a_dtype_off_the_list_is_refused(tmp_path: Path, dtype: str) -> None:
    with DataDirectory(tmp_path) as data, pytest.raises(ValueError, match="no place in format 1"):
        write_arrays(data, "codec", {"a": np.zeros(2, dtype)})
    assert list(tmp_path.iterdir()) == []


def hostile(directory: Path, rows: list[dict[str, Any]]) -> tuple[FileEntry, memoryview]:
    batches = [pa.RecordBatch.from_pylist([row], schema=ARRAYS_SCHEMA) for row in rows]
    with DataDirectory(directory) as data:
        entry = data.add_file("codec", lambda sink: write_table(sink, ARRAYS_SCHEMA, batches, 1))
    return entry, mapped(directory, entry)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("float32", [2], 4),
        ("float32", [2**62, 4], 0),
        ("float32", [2**63 - 1] * 3, 8),
        ("uint8", [0, 2**63 - 1, 2**63 - 1], 0),
        ("float32", [-1, -1], 4),
        ("object", [1], 8),
        ("<f4", [1], 4),
        ("O", [1], 8),
        ("uint8", [1] * 9, 1),
        ("", [], 0),
        ("float32", [], 0),
    ],
)
def test_an_array_that_does_not_fit_its_bytes_is_corrupt(
    tmp_path: Path, dtype: str, shape: list[int], size: int
) -> None:
    entry, data = hostile(tmp_path, [{"name": "a", "dtype": dtype, "shape": shape, "data": bytes(size)}])
    with pytest.raises(CorruptError, match="'a'"):
        read_arrays(entry, data)


@pytest.mark.parametrize("names", [["a", "a"], ["b", "a"], [""]])
def test_names_out_of_order_or_twice_are_corrupt(tmp_path: Path, names: list[str]) -> None:
    rows = [{"name": name, "dtype": "uint8", "shape": [1], "data": b"x"} for name in names]
    entry, data = hostile(tmp_path, rows)
    with pytest.raises(CorruptError, match="order"):
        read_arrays(entry, data)


def test_a_flipped_bit_in_an_array_is_never_returned(tmp_path: Path) -> None:
    with DataDirectory(tmp_path) as data:
        entry = write_arrays(data, "codec", {"a": np.arange(20, dtype=np.float32)})
    assert entry.batches is not None
    spoiled = bytearray(mapped(tmp_path, entry))
    for place in range(0, entry.batches.ends[-1], 7):
        spoiled[place] ^= 16
        with pytest.raises(CorruptError):
            read_arrays(entry, memoryview(bytes(spoiled)))
        spoiled[place] ^= 16
