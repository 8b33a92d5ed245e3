"""Puts the sample bank beside the format tests on the path, and makes one of it per run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A bank of one version with two shards and every kind of file."""
    from sample_bank import build_bank

    build_bank(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture(scope="session")
def shared_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, made once; for tests that change nothing."""
    from sample_bank import build_bank

    path = tmp_path_factory.mktemp("shared") / "bank"
    build_bank(path)
    return path
