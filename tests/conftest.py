"""What all tests share: the place of outside data, and small models made once per run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The cores are taken by other tests: threads that wait for each other would only slow all down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
_SHARED_MEMORY = Path("/dev/shm")
_SPACE = 4 << 30
if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free >= _SPACE:
    # Banks are synced to disk file by file, and tests make thousands of them: there it costs nothing.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_SHARED_MEMORY))


@pytest.fixture(scope="session")
def outside_data() -> Path:
    """The directory of real models and corpora; tests that use it are skipped where there is none."""
    place = os.environ.get("M3BUILD_TEST_DATA")
    if not place:
        pytest.skip(
            "needs real data: set M3BUILD_TEST_DATA to a directory with models/stories260K and corpora/"
        )
    return Path(place)


@pytest.fixture(scope="session")
def stories260k(outside_data: Path) -> Path:
    """The trained 260K-parameter Llama."""
    directory = outside_data / "models" / "stories260K"
    if not directory.is_dir():
        pytest.skip(f"needs the trained model {directory}")
    return directory


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers directory with a tiny random Llama and a byte-level tokenizer."""
    from models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
