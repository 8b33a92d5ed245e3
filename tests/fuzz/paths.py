"""Where the fuzzers find the project, whether it is installed or not, and what they borrow from the hostile
banks. Imported before all that."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
_ROOT = HERE.parents[1]
_PLACES = (_ROOT, _ROOT / "formats", _ROOT / "cli", HERE.parent / "hostile", HERE.parent / "formats")

sys.path[:0] = [str(path) for path in _PLACES if str(path) not in sys.path]
# A name in a bank must not make the embedder's optional library look for a model.
sys.modules["sentence_transformers"] = None  # type: ignore[assignment]
