"""Models that write memories: finding them, what they are, loading their memory layers.

``ModelFacts``, ``ShapeRequest``, ``MemoryShape`` and what parses them need no torch; ``load_model`` and its
kin are imported when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from m3build.model.memory3_file import read_memory3
from m3build.model.shape import (
    MemoryShape,
    ModelFacts,
    ShapeRequest,
    parse_heads,
    parse_layers,
    resolve_shape,
)

if TYPE_CHECKING:
    from m3build.model.identity import fingerprint
    from m3build.model.live import loaded_from
    from m3build.model.load import LoadedModel, load_model, load_shape
    from m3build.model.probe import matches_probe

__all__ = [
    "LoadedModel",
    "MemoryShape",
    "ModelFacts",
    "ShapeRequest",
    "fingerprint",
    "load_model",
    "load_shape",
    "loaded_from",
    "matches_probe",
    "parse_heads",
    "parse_layers",
    "read_memory3",
    "resolve_shape",
]

_HEAVY = {
    "LoadedModel": "load",
    "fingerprint": "identity",
    "load_model": "load",
    "load_shape": "load",
    "loaded_from": "live",
    "matches_probe": "probe",
}


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(import_module(f"m3build.model.{_HEAVY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
