"""The paper's rule times the length of the value vector: attention to a token moves the output by as much as
its value is long."""

from __future__ import annotations

from typing import ClassVar

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References, Selector
from m3build.selection.memory3 import Memory3


class ValueNorm(Selector):
    """``w_j · ‖v_j‖₂`` with w of the rule ``memory3``."""

    name: ClassVar[str] = "value-norm"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        lengths: torch.Tensor = torch.linalg.vector_norm(layer.value.float(), dim=-1)
        return Memory3().scores(layer, references) * lengths
