"""Puts the planted model beside these tests on the path, and saves it once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model that copies by construction."""
    from planted import save_planted

    return save_planted(tmp_path_factory.mktemp("planted"))
