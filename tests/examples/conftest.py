"""Puts the modules beside these tests on the path, and makes the bank that they spoil."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A bank of two shards whose files may be changed."""
    from any_codec_bank import build

    build(tmp_path / "bank", "PQ3x5")
    for path in (tmp_path / "bank").rglob("*.*"):
        path.chmod(0o644)
    return tmp_path / "bank"
