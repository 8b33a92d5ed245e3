from __future__ import annotations
from dataclasses import dataclass
from m3build.codec.spec import CodecSpec, parse_spec
@dataclass(frozen=True)
class Resolved:
    spec: CodecSpec
    warnings: tuple[str, ...] = ()
def resolve_codec(text: str, head_dim: int, *, training_vectors: int, forward_flops: float | None = None, vectors: int | None = None, quantizer_speed: float = 0.5) -> Resolved:
    if text in ("memory3",): return Resolved(parse_spec("OPQ20_80,Residual2x14,PQ8x10"))
    if text=="auto": return Resolved(parse_spec("PQ2x8"))
    return Resolved(parse_spec(text))
