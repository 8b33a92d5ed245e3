"""Takes a bank apart, lets a case change any byte, and puts it together with every digest right.

An attacker computes SHA-256 as well as anyone. So a forged bank passes all checks of digests, and what stands
behind them has to hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m3build_formats.arrow_file import batch_digest
from m3build_formats.layout import ARRAY_ROWS_PER_BATCH

JSON = dict[str, Any]
_MANIFEST = "versions/00000001.json"


@dataclass
class Table:
    """An Arrow file in its parts: the head, the messages of the record batches, what follows them."""

    head: bytes
    batches: list[bytes]
    tail: bytes
    rows: int
    each: int

    @property
    def schema(self) -> Any:
        """The schema that the head holds."""
        return pa.ipc.read_schema(pa.py_buffer(self.head[8:]))

    def read(self) -> Any:
        """All rows as one pyarrow table."""
        schema = self.schema
        parsed = [pa.ipc.read_record_batch(pa.py_buffer(batch), schema) for batch in self.batches]
        return pa.Table.from_batches(parsed, schema=schema)


@dataclass
class Forge:
    """A bank's manifest as JSON (without its digest) and its data files as bytes by name.

    ``manifest_bytes``, where a case sets it, is written as it is instead of ``manifest``.
    """

    manifest: JSON
    files: dict[str, bytes]
    manifest_bytes: bytes | None = None

    @classmethod
    def of(cls, path: Path) -> Forge:
        """The current contents of a bank of one version."""
        manifest = json.loads((path / _MANIFEST).read_bytes())
        del manifest["sha256"]
        return cls(manifest, {file.name: file.read_bytes() for file in (path / "data").iterdir()})

    def copy(self) -> Forge:
        """One to spoil while this stays as it is."""
        return Forge(deepcopy(self.manifest), dict(self.files))

    def shard(self, number: int = 0) -> JSON:
        """The manifest's object of a shard."""
        found: JSON = self.manifest["shards"][number]
        return found

    def entries(self) -> Iterator[JSON]:
        """The manifest's objects of all files."""
        for shard in self.manifest["shards"]:
            yield from (value for value in shard.values() if isinstance(value, dict))
        yield from (value for value in self.manifest["files"].values() if value)

    def data(self, entry: JSON) -> bytes:
        """The bytes of the file that an entry names."""
        return self.files[entry["name"]]

    def put(self, entry: JSON, data: bytes) -> None:
        """Gives an entry other bytes, named by their hash."""
        suffix = entry["name"].split(".", 1)[1]
        sha256 = hashlib.sha256(data).hexdigest()
        entry.update(sha256=sha256, name=f"{sha256}.{suffix}", bytes=len(data))
        self.files[entry["name"]] = data

    def table(self, entry: JSON) -> Table:
        """The parts of the Arrow file that an entry names."""
        data, batches = self.data(entry), entry["batches"]
        bounds = [batches["head"]["bytes"], *batches["ends"]]
        middle = [data[start:end] for start, end in pairwise(bounds)]
        return Table(data[: bounds[0]], middle, data[bounds[-1] :], entry["rows"], batches["rows"])

    def put_table(self, entry: JSON, table: Table) -> None:
        """Gives an entry the parts of another Arrow file, with digests and places that fit them."""
        data, ends = bytearray(table.head), []
        for batch in table.batches:
            data += batch
            ends.append(len(data))
        self.put(entry, bytes(data + table.tail))
        entry["rows"] = table.rows
        entry["batches"] = {
            "rows": table.each,
            "head": {"bytes": len(table.head), "digest": batch_digest(table.head)},
            "ends": ends,
            "digests": [batch_digest(batch) for batch in table.batches],
        }

    def put_rows(
        self, entry: JSON, rows: Any, each: int | None = None, options: Any = None, **changed: Any
    ) -> None:
        """Gives an entry a table of these pyarrow rows, written by pyarrow itself, ``each`` in a batch;
        ``changed`` overrides what the entry then says."""
        each = each or entry["batches"]["rows"]
        self.put_table(entry, arrow_table(rows, each, options))
        entry.update(changed)

    def put_arrays(self, kind: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Gives the codec or embedder file other arrays; nothing is asked of them."""
        rows = [
            {
                "name": name,
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "data": np.ascontiguousarray(array).tobytes(),
            }
            for name, array in arrays.items()
        ]
        self.put_array_rows(kind, rows)

    def put_array_rows(self, kind: str, rows: list[JSON]) -> None:
        """The same from rows of the table, which may say anything."""
        entry = self.manifest["files"][kind]
        schema = self.table(entry).schema
        self.put_rows(entry, pa.Table.from_pylist(rows, schema=schema), ARRAY_ROWS_PER_BATCH)

    def array_rows(self, kind: str) -> list[JSON]:
        """The rows of the codec or embedder file."""
        rows: list[JSON] = self.table(self.manifest["files"][kind]).read().to_pylist()
        return rows

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """The arrays of the codec or embedder file."""
        return {
            row["name"]: np.frombuffer(row["data"], row["dtype"]).reshape(row["shape"])
            for row in self.array_rows(kind)
        }

    def sealed(self) -> bytes:
        """The manifest's bytes with the digest at their end."""
        text = json.dumps(self.manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return seal(text.encode("utf-8", "surrogatepass"))

    def write(self, path: Path) -> Path:
        """Puts the bank at ``path``, with all data files, those that a case has replaced too."""
        (path / "versions").mkdir(parents=True)
        (path / "data").mkdir()
        for name, data in self.files.items():
            (path / "data" / name).write_bytes(data)
        (path / _MANIFEST).write_bytes(self.sealed() if self.manifest_bytes is None else self.manifest_bytes)
        return path


def seal(body: bytes) -> bytes:
    """Bytes that end with a brace as a manifest file: with the SHA-256 of themselves."""
    return body[:-1] + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def arrow_table(rows: Any, each: int, options: Any = None) -> Table:
    """The parts of an Arrow file that pyarrow writes for a table, whatever its columns are."""
    sink = pa.BufferOutputStream()
    ends = []
    with pa.ipc.new_file(sink, rows.schema, options=options) as writer:
        for start in range(0, rows.num_rows, each):
            # A batch without offsets of its own: what a slice has before it is not written.
            batch = pa.Table.from_batches(rows.slice(start, each).to_batches()).combine_chunks()
            writer.write_batch(batch.to_batches()[0])
            ends.append(sink.tell())
    data = sink.getvalue().to_pybytes()
    head = 16 + int.from_bytes(data[12:16], "little")
    bounds = [head, *ends]
    middle = [data[start:end] for start, end in pairwise(bounds)]
    return Table(data[:head], middle, data[bounds[-1] :], rows.num_rows, each)
