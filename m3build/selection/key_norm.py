"""Keep the tokens with the shortest keys: in trained models a short key goes with much attention received
(Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", 2024). RoPE changes
no norm, so it does not matter here."""

from __future__ import annotations

from typing import ClassVar

import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References, Selector


class KeyNorm(Selector):
    """``−‖k_j‖₂`` of the keys before RoPE."""

    name: ClassVar[str] = "key-norm"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        lengths: torch.Tensor = torch.linalg.vector_norm(layer.key.float(), dim=-1)
        return -lengths
