"""Puts the fault tests' own modules and the sample bank of the format tests on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
for place in (_HERE, _HERE.parent / "formats"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A bank of one version with two shards and every kind of file."""
    from sample_bank import build_bank

    build_bank(tmp_path / "bank", (9, 4))
    return tmp_path / "bank"
