"""Control: the last tokens of a reference, at every head."""

from __future__ import annotations

from typing import ClassVar

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References, Selector


class Last(Selector):
    """Later is better."""

    name: ClassVar[str] = "last"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        rows, heads, tokens, _ = layer.key.shape
        places = torch.arange(tokens, dtype=torch.float32, device=layer.key.device)
        return places.expand(rows, heads, tokens)
