"""Where a model can read memories: which layers and heads copy, and what memories there are worth to it.

``passages`` makes repeated passages, ``head_scores`` measures attention on them, ``reading_loss`` the loss
with all tokens of some layers as memory, and ``calibrate`` recommends layers and heads from both.
"""

from __future__ import annotations

from m3build.calibration.calibrate import Calibration, calibrate
from m3build.calibration.passages import Repeats, cut_passages, random_passages, repeat_passages

__all__ = ["Calibration", "Repeats", "calibrate", "cut_passages", "random_passages", "repeat_passages"]
