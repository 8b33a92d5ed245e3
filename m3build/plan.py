"""What a bank will cost before it is built: bytes by layout, FLOPs by reference, time by measurement.

Sizes follow from the shape alone (Memory³ §3.3). FLOPs come twice: as the paper estimates them (App. A), for
comparison with its figures, and as this compiler spends them, which depends on what it skips. Time is
measured by encoding real chunks, never derived from FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from m3build.model.shape import MemoryShape, ModelFacts

# Architectures whose MLP is two plain matrices; all others that are supported have a gated one of three.
PLAIN_MLP = frozenset({"gpt_neox"})
BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder-only transformer that its memories depend on (Memory³ §3.4)."""

    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    mlp_matrices: int = 3


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Which part of the model a memory is made of: memory layers, heads over all of them together, tokens
    kept and encoded.
    """

    memory_layers: int
    heads: int
    sparse_tokens: int
    reference_tokens: int
    bos_tokens: int
    bytes_per_vector: int

    @property
    def vectors(self) -> int:
        """Key and value vectors of one reference."""
        return 2 * self.heads * self.sparse_tokens


def model_shape(facts: ModelFacts) -> ModelShape:
    """The sizes of a model whose config was read."""
    return ModelShape(
        facts.layers,
        facts.hidden_size,
        facts.query_heads,
        facts.kv_heads,
        facts.head_dim,
        facts.intermediate_size,
        2 if facts.architecture in PLAIN_MLP else 3,
    )


def memory_plan(shape: MemoryShape, bos_tokens: int, bytes_per_vector: int = 0) -> MemoryPlan:
    """The sizes of the memories of a model; ``bytes_per_vector`` is 0 as long as no codec is chosen."""
    return MemoryPlan(
        len(shape.memory_layers),
        len(shape.heads),
        shape.sparse_tokens,
        shape.reference_tokens,
        bos_tokens,
        bytes_per_vector,
    )


def dense_bytes(model: ModelShape, reference_tokens: int) -> int:
    """Bytes of one reference if every layer, query head and token were kept in bfloat16, as the paper counts
    it (§3.3).
    """
    return model.layers * 2 * model.query_heads * reference_tokens * model.head_dim * 2


def sparse_bytes(model: ModelShape, memory: MemoryPlan) -> int:
    """Bytes of one reference's kept keys and values in bfloat16."""
    return memory.vectors * model.head_dim * 2


def code_bytes(memory: MemoryPlan) -> int:
    """Bytes of one reference's codes, without its kept positions."""
    return memory.vectors * memory.bytes_per_vector


def position_bytes(memory: MemoryPlan) -> int:
    """Bytes of one reference's kept positions."""
    return memory.heads * memory.sparse_tokens


def paper_write_flops(model: ModelShape, memory: MemoryPlan) -> float:
    """FLOPs of writing one memory as the paper estimates them (App. A): reference tokens only, H·d_h taken as
    d, the deepest output projection counted.
    """
    d, length, depth = model.hidden, memory.reference_tokens, memory.memory_layers
    projections = depth * (
        length * (2 * d * d + 2 * d * model.head_dim * model.kv_heads) + 2 * (length**2 / 2) * d
    )
    mlp = (depth - 1) * length * 3 * d * model.mlp_width
    selection = depth * length**2 * d
    return 2.0 * (projections + mlp + selection)


def write_flops(model: ModelShape, memory: MemoryPlan, deepest_layer: int) -> float:
    """FLOPs that this compiler spends on one full reference: BOS included, layers 0 to ``deepest_layer``, of
    which the last only projects.
    """
    d, length = model.hidden, memory.bos_tokens + memory.reference_tokens
    queries, keys = model.query_heads * model.head_dim, model.kv_heads * model.head_dim
    project = length * d * (queries + 2 * keys)
    attend = 2 * length**2 * queries
    rest = length * queries * d + length * model.mlp_matrices * d * model.mlp_width
    select = memory.reference_tokens**2 * queries
    return 2.0 * (
        (deepest_layer + 1) * project + deepest_layer * (attend + rest) + memory.memory_layers * select
    )


def read_flops(model: ModelShape, memory: MemoryPlan, query_tokens: int = 64) -> float:
    """FLOPs of attending to one memory with one query chunk (App. A)."""
    return 2.0 * memory.memory_layers * 2 * query_tokens * memory.sparse_tokens * model.hidden


def in_both_units(count: float) -> str:
    """``4415488000000`` as ``4.42 TB (4.02 TiB)``."""
    return f"{_scaled(count, 1000, DECIMAL_UNITS)} ({_scaled(count, 1024, BINARY_UNITS)})"


def in_decimal_units(count: float) -> str:
    """``22700000`` as ``22.7 MB``."""
    return _scaled(count, 1000, DECIMAL_UNITS)


def _scaled(count: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while count >= base and power < len(units) - 1:
        count /= base
        power += 1
    if power == 0:
        return f"{count:.0f} {units[0]}"
    return f"{count:.{2 if count < 10 else 1 if count < 100 else 0}f} {units[power]}"
