"""The facts of a bank, for people."""

from __future__ import annotations

from typing import Any

from m3build.plan import in_both_units


def describe_facts(bank: str, facts: dict[str, Any]) -> str:
    """About fifteen lines."""
    model, codec, index = facts["model"], facts["codec"], facts["index"]
    layers = ", ".join(map(str, model["memory_layers"]))
    rows = [
        (
            "bank",
            f"{bank}, version {facts['version']} of {facts['created']}, format {facts['format_version']}",
        ),
        ("digest", f"sha256:{facts['sha256']}"),
        ("corpus", f"{facts['documents']:,} documents, {facts['characters']:,} characters"),
        ("chunks", f"{facts['chunks']:,} in {facts['shards']:,} shards, {facts['tokens']:,} tokens"),
        ("left out", left_out(facts)),
        *([("exclude", ", ".join(facts["exclude"]))] if facts["exclude"] else []),
        ("model", f"{model['name']} ({model['fingerprint'][:12]})"),
        (
            "memory",
            f"layers {layers}; {model['kv_heads']} key-value heads of {model['head_dim']}; "
            f"{model['sparse_tokens']} of at most {model['reference_tokens']} tokens a head",
        ),
        *([("cold", cold(facts))] if facts["cold"] else []),
        (
            "codec",
            f"{codec['spec']}, {codec['bytes_per_vector']} bytes a vector, {codec['compression']:.1f} "
            f"times smaller",
        ),
    ]
    errors = {"keys": codec["key_error"], "values": codec["value_error"]}
    measured = [f"{name} {error:.4f}" for name, error in errors.items() if error is not None]
    if measured:
        rows.append(("error", f"{', '.join(measured)} of the variance"))
    rows += [
        ("embedder", f"{facts['embedder']['name']}, {facts['embedder']['dim']} dimensions"),
        ("index", f"{index['type']}, {index['metric']}, {index['vectors']:,} vectors" + recall(index)),
        ("bytes", in_both_units(facts["bytes"]["total"])),
    ]
    rows += [
        ("", f"{in_both_units(size):>24}  {name}") for name, size in facts["bytes"].items() if name != "total"
    ]
    rows += [
        ("" if n else "measured", line) for n, line in enumerate(measured_lines(facts.get("evaluation")))
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in rows)


def cold(facts: dict[str, Any]) -> str:
    """How much of a bank of text only has no memory yet."""
    if facts["cold"] == facts["chunks"]:
        return "text only: memories are made at first retrieval"
    return f"{facts['cold']:,} of {facts['chunks']:,} chunks have no memory yet: made at first retrieval"


def left_out(facts: dict[str, Any]) -> str:
    """Everything of the input that did not become a row, by reason."""
    parts = [
        (facts["duplicates"], "duplicates"),
        (facts["near_duplicates"], "near-duplicates"),
        (facts["empty_documents"], "empty documents"),
        (facts["rejects"], "rejects"),
        (facts["excluded"], "excluded"),
        (facts["unsupported_files"], "files of other kinds"),
    ]
    named = ", ".join(f"{count:,} {name}" for count, name in parts if count) or "nothing"
    missing = f"; {facts['unlisted']:,} are not in its list" if facts["unlisted"] else ""
    return named + missing


def recall(index: dict[str, Any]) -> str:
    """Recall of an approximate index, if measured."""
    found = index.get("recall")
    return f", recall@10 {found:.3f}" if isinstance(found, int | float) else ""


def measured_lines(evaluation: dict[str, Any] | None) -> list[str]:
    """What ``m3build eval`` stored: a line on loss, a line on retrieval, a line on its gate; none without an
    evaluation. A file of another writer may hold anything, and what is not as expected is left out."""
    if evaluation is None:
        return []
    if "problem" in evaluation:
        return [f"unreadable: {evaluation['problem']}"]
    lines = []
    none, quantized = (number_at(evaluation, "loss", name) for name in ("none", "quantized"))
    if none is not None and quantized is not None:
        line = f"loss {none:.4f} without memories, {quantized:.4f} with them"
        low, high = (number_at(evaluation, "gain", "quantized", end) for end in ("low", "high"))
        if low is not None and high is not None:
            line += f" (gain {low:+.4f} to {high:+.4f})"
        over = number_at(evaluation, "gain_over_random", "mean")
        lines.append(line + (f", {over:+.4f} over random ones" if over is not None else ""))
    conclusion = evaluation.get("conclusion")
    if isinstance(conclusion, str):
        lines.append(conclusion[:200])
    found = [(k, number_at(evaluation, "retrieval", "index", f"hit@{k}")) for k in (1, 5, 10)]
    if all(share is not None for _, share in found):
        lines.append("retrieval " + ", ".join(f"hit@{k} {share:.4f}" for k, share in found))
    if isinstance(evaluation.get("passed"), bool) and evaluation.get("require"):
        lines.append("gate passed" if evaluation["passed"] else "gate not passed")
    return lines


def number_at(value: Any, *path: str) -> float | None:
    """The number at a path of keys, None where there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
