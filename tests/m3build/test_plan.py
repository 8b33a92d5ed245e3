"""The planner against the paper's printed figures (Memory³ §3.3, App. A)."""

from __future__ import annotations

import pytest

from m3build.plan import (
    MemoryPlan,
    ModelShape,
    code_bytes,
    dense_bytes,
    in_both_units,
    paper_write_flops,
    read_flops,
    sparse_bytes,
    write_flops,
)

PAPER_MODEL = ModelShape(layers=44, hidden=3200, query_heads=40, kv_heads=8, head_dim=80, mlp_width=3200)
PAPER_MEMORY = MemoryPlan(
    memory_layers=22, heads=22 * 8, sparse_tokens=8, reference_tokens=128, bos_tokens=0, bytes_per_vector=14
)
PAPER_REFERENCES = 112_000_000


@pytest.mark.parametrize(
    ("each", "expected_each", "together"),
    [
        (dense_bytes(PAPER_MODEL, 128), 72_089_600, "7.17 PiB"),
        (sparse_bytes(PAPER_MODEL, PAPER_MEMORY), 450_560, "45.9 TiB"),
        (code_bytes(PAPER_MEMORY), 39_424, "4.02 TiB"),
    ],
)
def test_sizes_are_those_of_the_paper(each: int, expected_each: int, together: str) -> None:
    assert each == expected_each
    assert f"({together})" in in_both_units(each * PAPER_REFERENCES)


def test_writing_costs_what_the_paper_says() -> None:
    assert paper_write_flops(PAPER_MODEL, PAPER_MEMORY) / 1e12 == pytest.approx(0.308, abs=0.0005)


def test_leaving_out_the_deepest_output_projection_costs_less_by_just_that() -> None:
    with_it = paper_write_flops(PAPER_MODEL, PAPER_MEMORY)
    assert (with_it - 2 * 128 * 3200 * 3200) / 1e12 == pytest.approx(0.306, abs=0.0005)


def test_reading_costs_what_the_paper_says() -> None:
    assert read_flops(PAPER_MODEL, PAPER_MEMORY) / 1e12 == pytest.approx(1.44e-4, rel=0.01)


def test_counted_flops_agree_with_a_count_of_the_real_modules() -> None:
    """Every linear layer that runs, counted by hooks on a real model, and the two products of each "
    "attention."""
    import torch
    from models import tiny_model

    from m3build.capture import capture

    model = tiny_model("llama").model
    counted = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(module, torch.nn.Linear)
        counted += 2 * inputs[0].shape[-2] * module.in_features * module.out_features

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    tokens, deepest, layers = 24, 2, (0, 2)
    with torch.no_grad():
        capture(model, torch.arange(tokens)[None], layers)
    attention = deepest * 2 * 2 * tokens * tokens * 64
    selection = len(layers) * 2 * tokens * tokens * 64
    shape = ModelShape(layers=4, hidden=64, query_heads=4, kv_heads=2, head_dim=16, mlp_width=96)
    memory = MemoryPlan(
        memory_layers=2, heads=4, sparse_tokens=8, reference_tokens=tokens, bos_tokens=0, bytes_per_vector=0
    )
    assert write_flops(shape, memory, deepest) == counted + attention + selection


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B (0 B)"),
        (999, "999 B (999 B)"),
        (1000, "1.00 kB (1000 B)"),
        (1536, "1.54 kB (1.50 KiB)"),
        (4_415_488_000_000, "4.42 TB (4.02 TiB)"),
    ],
)
def test_bytes_are_told_in_both_unit_systems(count: int, text: str) -> None:
    assert in_both_units(count) == text
