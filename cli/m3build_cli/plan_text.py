"""A plan, for people."""

from __future__ import annotations

from m3build.pipeline.planning import Plan
from m3build.plan import in_both_units


def describe_plan(plan: Plan) -> str:
    """What a build would take: references, bytes in both unit systems, FLOPs, time."""
    n = plan.references
    about = "" if plan.counted else "about "
    least, most = plan.shards
    layers = ", ".join(map(str, plan.memory_layers))
    lines = [
        f"{about}{n:,} references, {least:,} to {most:,} shards; model {plan.model}, memory layers "
        f"{layers}; codec {plan.codec}",
        "",
        f"{'bytes':<50}{'a reference':>14}  all together",
        _row("every layer, query head and token in bfloat16", plan.dense_bytes_each, n),
        _row("memory layers and heads, kept tokens in bfloat16", plan.sparse_bytes_each, n),
        _row("the same as codes", plan.code_bytes_each, n),
        _row("kept positions", plan.position_bytes_each, n),
    ]
    if plan.text_bytes is not None:
        lines.append(_row("text, spans and sources", plan.text_bytes / n, n))
    lines += [
        _row("embeddings", plan.embedding_bytes / n, n),
        _row("index", plan.index_bytes / n, n),
        _row(
            "bank: text, embeddings, index; no memories yet"
            if plan.text_only
            else "bank: codes, positions, text, embeddings, index",
            plan.bank_bytes / n,
            n,
        ),
        "",
        f"{'FLOPs to write':<50}{'a reference':>14}  all together",
        _flops("as the paper estimates (App. A)", plan.paper_flops_each, n),
        _flops("as m3build spends them", plan.flops_each, n),
    ]
    if plan.seconds is None:
        lines += ["", "no time is told: it takes sources, weights and a tokenizer to measure it"]
    else:
        total = sum(plan.seconds.values())
        parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in plan.seconds.items())
        lines += [
            "",
            f"time on this machine: about {_duration(total)} ({parts}), from a sample of the sources",
        ]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _row(name: str, each: float, count: int) -> str:
    return f"{name:<50}{each:>14,.0f}  {in_both_units(each * count)}"


def _flops(name: str, each: float, count: int) -> str:
    return f"{name:<50}{_scaled_flops(each):>14}  {_scaled_flops(each * count)}"


def _scaled_flops(flops: float) -> str:
    for power, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if flops >= 0.1 * 10**power:
            return f"{flops / 10**power:,.3g} {prefix}FLOP"
    return f"{flops:,.0f} FLOP"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
