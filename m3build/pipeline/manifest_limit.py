"""Whether a version's manifest will be one that readers take, told before anything is encoded."""

from __future__ import annotations

from m3build.plan import in_both_units
from m3build_formats.layout import MAX_MANIFEST_BYTES, fixed_width_rows_per_batch

# A digest of 32 hex digits in quotes and where the batch ends, seven digits or more, a comma behind each.
_LEAST_JSON_BYTES_A_BATCH = 35 + 8


def manifest_problem(rows: int, row_bytes: int) -> str | None:
    """Why a bank of ``rows`` memories of ``row_bytes`` bytes cannot be: each record batch is named in the
    manifest, which may have no more than ``MAX_MANIFEST_BYTES`` (SPEC 3). None if it can."""
    size = -(-rows // fixed_width_rows_per_batch(row_bytes)) * _LEAST_JSON_BYTES_A_BATCH
    if size <= MAX_MANIFEST_BYTES:
        return None
    return (
        f"{rows:,} memories of {row_bytes:,} bytes need a manifest of {in_both_units(size)} at least, and "
        f"the format allows {in_both_units(MAX_MANIFEST_BYTES)}: take a codec with fewer bytes a vector, or "
        "divide the corpus among several banks"
    )
