"""The sound banks that cases spoil, and the process that reads the spoilt ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from forge import Forge
    from server import Reader

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "formats")]

SPECS = ("SQfp16", "Flat", "SQ8", "IVF4,Flat", "IVF4,SQfp16", "IVF4,SQ8", "IVF2,PQ4", "HNSW4")


@pytest.fixture(scope="session")
def sound_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound bank with each kind of index, by its spec."""
    from good_bank import build

    place = tmp_path_factory.mktemp("sound")
    return {spec: build(place / spec.replace(",", "-"), spec) for spec in SPECS}


@pytest.fixture(scope="session")
def sound(sound_paths: dict[str, Path]) -> dict[str, Forge]:
    """The same banks taken apart."""
    from forge import Forge

    return {spec: Forge.of(path) for spec, path in sound_paths.items()}


@pytest.fixture(scope="session")
def reader(sound_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The process that reads."""
    from server import Reader

    # What a bank that names files would find.
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "canary").write_bytes(bytes(1 << 16))
    process = Reader(sound_paths, place)
    yield process
    process.close()
