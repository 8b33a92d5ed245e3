"""The summary of a build, for people."""

from __future__ import annotations

from typing import Any

from m3build.pipeline.drift_report import WORDS, Drift
from m3build.pipeline.reproduce import Reproduction
from m3build.pipeline.result import CompileResult
from m3build.plan import in_both_units, in_decimal_units
from m3build_formats.info import describe


def describe_result(result: CompileResult) -> str:
    """A dozen lines: what came in, what was made, how exact it is, what it takes on disk, and what was left
    out.
    """
    facts = describe(result.manifest)
    if not result.changed:
        if not result.repaired:
            return f"{result.bank}: version {result.version} is up to date, nothing to do"
        return "\n".join(
            [
                f"{result.bank}: version {result.version} is up to date; missing or damaged files made anew:",
                *(f"  data/{name}" for name in result.repaired),
            ]
        )
    lines = [
        f"{result.bank}: version {result.version}, {facts['documents']:,} documents, "
        f"{facts['chunks']:,} chunks, {facts['tokens']:,} tokens, "
        f"{facts['shards']} shard{'s' if facts['shards'] != 1 else ''} in {result.seconds:,.1f} s",
        f"  encoded     {result.encoded:,} references"
        + (f", {result.reused:,} reused" if result.reused else "")
        + (f", {result.repeated:,} repeated" if result.repeated else "")
        + (f"; text only, {facts['cold']:,} are encoded when first retrieved" if facts["cold"] else ""),
        f"  duplicates  {facts['duplicates']:,} exact"
        + (f", {facts['near_duplicates']:,} near" if facts["near_duplicates"] else ""),
        f"  codec       {codec_line(facts['codec'])}",
        *([f"  drift       {drift_line(result.drift)}"] if result.drift else []),
        f"  on disk     {in_both_units(facts['bytes']['total'])}: "
        + ", ".join(
            f"{name} {in_decimal_units(size)}" for name, size in facts["bytes"].items() if name != "total"
        ),
    ]
    if facts["excluded"]:
        lines.append(f"  excluded    {facts['excluded']:,} documents or files (--exclude)")
    if facts["empty_documents"]:
        lines.append(f"  empty       {facts['empty_documents']:,} documents without text")
    if facts["unsupported_files"]:
        lines.append(
            f"  passed over {facts['unsupported_files']:,} files of kinds that are not read"
            f" (m3build info {result.bank} --rejects)"
        )
    if facts["rejects"]:
        lines.append(f"  rejected    {rejected(facts)}:")
        lines += [f"    {r.source}, {r.where}: {r.reason}" for r in result.rejects]
        if facts["rejects"] > len(result.rejects):
            lines.append(f"    … (all: m3build info {result.bank} --rejects)")
    return "\n".join(lines)


def rejected(facts: dict[str, Any]) -> str:
    """How many records were rejected, and whether the bank lists them."""
    listed = "listed in the bank"
    if facts["unlisted"]:
        listed += f" but for the last {facts['unlisted']:,} entries: its list is full"
    return f"{facts['rejects']:,} records, {listed}"


def describe_reproduction(result: Reproduction) -> str:
    """One line where all bytes are the same, else what differs."""
    made = f"built again in {result.seconds:,.1f} s, {result.encoded:,} references encoded"
    if result.identical:
        return f"{result.bank}: version {result.version} is byte-identical ({made})"
    lines = [f"{result.bank}: version {result.version} came out otherwise ({made}):"]
    lines += [f"  {words}" for words in result.differences]
    lines += [
        f"  {name}: {then or 'none'} then, {now or 'none'} now"
        for name, (then, now) in result.libraries.items()
    ]
    return "\n".join(lines)


def drift_line(drift: Drift) -> str:
    """How well the codec and embedder that were kept fit what is new, in one line."""
    measured = [
        f"{WORDS[figure.name]} {figure.new:.3g}"
        + (f" ({figure.training:.3g} at training)" if figure.training is not None else "")
        for figure in drift.figures
        if figure.new is not None
    ]
    number = f"{drift.sampled:,}" + (f" of {drift.references:,}" if drift.sampled < drift.references else "")
    judged = "" if drift.judged else "; too few to judge by"
    return f"on {number} new references: {', '.join(measured) or 'nothing to measure'}{judged}"


def codec_line(codec: dict[str, object]) -> str:
    """Spec, bytes and errors of a codec in one line."""
    size = (
        f"{codec['bytes_per_vector']} bytes a vector, {codec['compression']:.1f} times smaller than bfloat16"
    )
    text = f"{codec['spec']}, {size}"
    if codec.get("key_error") is not None:
        text += f", error of keys {codec['key_error']:.3g}, of values {codec['value_error']:.3g}"
    return text
