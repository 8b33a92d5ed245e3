"""A bank whose manifest readers would refuse is refused before it is built."""

from __future__ import annotations

import pytest

from m3build.pipeline.manifest_limit import manifest_problem
from m3build_formats.canonical_json import canonical_json
from m3build_formats.entries import Batches
from m3build_formats.layout import MAX_MANIFEST_BYTES, fixed_width_rows_per_batch

PAPER_ROW = 2 * 22 * 8 * 8 * 14 + 22 * 8 * 8


@pytest.mark.parametrize("row_bytes", [1000, PAPER_ROW, 452_000])
def test_what_is_refused_would_be_too_long_for_its_batches_alone(row_bytes: int) -> None:
    each = fixed_width_rows_per_batch(row_bytes)
    limit = next(n for n in range(1, 1 << 31) if manifest_problem(n * each * (1 << 16), row_bytes)) << 16
    count = 20_000
    size = each * row_bytes
    batches = Batches(each, 500, "0" * 32, [size * (at + 1) for at in range(count)], ["f" * 32] * count)
    # The same for as many batches as are refused: never less than the limit.
    assert len(canonical_json(batches.to_json())) / count * limit >= MAX_MANIFEST_BYTES


def test_the_papers_bank_fits_and_unquantized_memories_of_as_many_references_do_not() -> None:
    assert manifest_problem(112_000_000, PAPER_ROW) is None
    problem = manifest_problem(112_000_000, 452_000)
    assert problem is not None
    assert "112,000,000 memories of 452,000 bytes" in problem
