"""Every magic, name, version and limit of the bank format, as one named constant each.

Nothing here is tunable at run time: a constant that shapes bytes (rows a batch, digest length, unused slot)
is part of format 1, and a limit is what a reader may count on when it meets a file from a stranger. SPEC.md
quotes these values; a test compares the two.
"""

from __future__ import annotations

import re
from typing import Final

FORMAT: Final = "m3build-bank"
FORMAT_VERSION: Final = 1
KNOWN_FEATURES: Final[frozenset[str]] = frozenset()

# Directories and files of a bank.
VERSIONS_DIRECTORY: Final = "versions"
DATA_DIRECTORY: Final = "data"
BUILD_DIRECTORY: Final = "build"
LOCK_FILE: Final = "writer.lock"
MANIFEST_NAME: Final = re.compile(r"([0-9]{8})\.json", re.ASCII)
MAX_VERSION: Final = 99_999_999
TEMPORARY_PREFIX: Final = ".tmp-"

# File kinds: the manifest's word for a kind, and how a name ends after "<sha256>.".
SUFFIXES: Final[dict[str, str]] = {
    "chunks": "chunks.arrow",
    "documents": "documents.arrow",
    "memories": "memories.arrow",
    "embeddings": "embeddings.arrow",
    "index": "index",
    "codec": "codec.arrow",
    "embedder": "embedder.arrow",
    "rejects": "rejects.jsonl.zst",
    "eval": "eval.json",
}
TABLE_KINDS: Final = frozenset({"chunks", "documents", "memories", "embeddings", "codec", "embedder"})

# Manifest and canonical JSON.
MAX_MANIFEST_BYTES: Final = 512 << 20
MAX_JSON_DEPTH: Final = 32
MAX_JSON_INTEGER: Final = (1 << 53) - 1
MAX_FILE_BYTES: Final = 1 << 50
MAX_ROWS: Final = 1 << 40
MAX_SHARD_ROWS: Final = (1 << 32) - 1
MAX_ROW_BYTES: Final = 1 << 28
MAX_DIMENSION: Final = 1 << 16
MAX_LAYERS: Final = 4096
MAX_HEADS: Final = 4096

# References and memories.
MAX_REFERENCE_TOKENS: Final = 255
UNUSED_SLOT: Final = 255
MAX_CHUNK_CHARACTERS: Final = 65_535

# Text columns of the documents table. A longer value is a bad record: the compiler rejects it before it gets
# here.
MAX_DOCUMENT_ID_BYTES: Final = 4096
MAX_TITLE_BYTES: Final = 65_536
MAX_METADATA_BYTES: Final = 1 << 20

# Arrow files.
ARROW_FILE_START: Final = b"ARROW1\0\0"
MAX_HEAD_BYTES: Final = 1 << 20
BATCH_DIGEST_BYTES: Final = 16
MIN_HEAD_BYTES: Final = 16
CHUNK_ROWS_PER_BATCH: Final = 512
DOCUMENT_ROWS_PER_BATCH: Final = 1024
ARRAY_ROWS_PER_BATCH: Final = 1
FIXED_WIDTH_BATCH_BYTES: Final = 1 << 20
MAX_FIXED_WIDTH_ROWS_PER_BATCH: Final = 4096
MAX_ROWS_PER_BATCH: Final = 65_536

# Named arrays (codec and embedder files).
ARRAY_DTYPES: Final[tuple[str, ...]] = (
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)
MAX_ARRAY_DIMENSIONS: Final = 8
MAX_ARRAYS: Final = 65_536

# Rejects and evaluation files.
ZSTD_LEVEL: Final = 9
MAX_ZSTD_WINDOW_BYTES: Final = 8 << 20
MAX_REJECTS_TEXT_BYTES: Final = 1 << 30
MAX_REJECT_LINE_BYTES: Final = 1 << 16
MAX_EVAL_BYTES: Final = 64 << 20

# FAISS index files: the first four bytes name the type. Only these are handed to FAISS (written by faiss 1.15
# for the types named).
FAISS_FOURCC: Final[dict[bytes, str]] = {
    b"IxF2": "IndexFlat, squared L2",
    b"IxFI": "IndexFlat, inner product",
    b"IxSQ": "IndexScalarQuantizer",
    b"IwFl": "IndexIVFFlat",
    b"IwSq": "IndexIVFScalarQuantizer",
    b"IwPQ": "IndexIVFPQ",
    b"IxPq": "IndexPQ",
    b"IHNf": "IndexHNSWFlat",
    b"IHNs": "IndexHNSWSQ",
    b"IxPT": "IndexPreTransform",
}


def fixed_width_rows_per_batch(row_bytes: int) -> int:
    """Rows in each record batch of a table whose rows are ``row_bytes`` wide: the largest power of two that
    keeps a batch within ``FIXED_WIDTH_BATCH_BYTES``, at least 1 and at most
    ``MAX_FIXED_WIDTH_ROWS_PER_BATCH``."""
    fitting = max(1, FIXED_WIDTH_BATCH_BYTES // max(1, row_bytes))
    return int(min(MAX_FIXED_WIDTH_ROWS_PER_BATCH, 1 << (fitting.bit_length() - 1)))


def reference_text(title: str, text: str) -> str:
    """Text whose UTF-8 is hashed into a chunk's id: the title, a line feed and the chunk's own text, or the
    text alone without a title."""
    return f"{title}\n{text}" if title else text
