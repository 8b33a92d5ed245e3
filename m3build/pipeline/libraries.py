"""Which libraries and what kind of processor made a bank: where these are equal, bytes are."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

LIBRARIES = ("m3build", "torch", "transformers", "tokenizers", "faiss-cpu", "pyarrow", "numpy")


def library_versions() -> dict[str, str]:
    """Versions by distribution name, Python's, and the instruction set that torch uses."""
    import torch

    return {
        **_installed(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


@cache
def _installed() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
