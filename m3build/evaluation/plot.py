"""The gain of memories by query chunk and by rank of the reference, drawn with matplotlib (an extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m3build_formats.atomic import resource_errors
from m3build_formats.errors import UsageError

KINDS = (".png", ".svg")
_WAYS = {
    "quantized": "memories as stored",
    "exact": "unquantized",
    "random": "random references",
    "text": "as text",
    "dense": "all keys and values",
}


def check_plot(path: Path, text: Sequence[str]) -> None:
    """Raises UsageError for a plot that could not be drawn at the end: another kind of file, no directory, no
    matplotlib, no text to measure gains on."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--plot {path}: name a file that ends with {' or '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no directory {path.parent}")
    if not text:
        raise UsageError("--plot shows gains on text: name held-out text with --text")
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'm3build[plot]'") from None


def draw_gains(path: Path, results: Mapping[str, Any]) -> None:
    """Two panels with 95 % intervals. Raises ResourceError where the file cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    chunks, ranks = figure.subplots(1, 2, sharey=False)
    rows = results["by_chunk"]
    for number, (name, words) in enumerate(_WAYS.items()):
        # A little apart, so that intervals do not cover each other.
        places = [row["chunk"] + (number - len(_WAYS) / 2) * 0.06 for row in rows]
        _errorbars(chunks, places, [row["gain"][name] for row in rows], words)
    chunks.set_xlabel("query chunk of the window")
    chunks.set_ylabel("gain, nats per token")
    chunks.legend(fontsize="small")
    by_rank = results["by_rank"]
    _errorbars(
        ranks, [row["rank"] for row in by_rank], [row["gain"] for row in by_rank], "one reference alone"
    )
    ranks.axhline(results["gain"]["quantized"]["mean"], linestyle="--", label="all of them")
    ranks.set_xlabel("rank of the reference")
    ranks.set_xticks([row["rank"] for row in by_rank])
    ranks.legend(fontsize="small")
    for panel in (chunks, ranks):
        panel.axhline(0, color="grey", linewidth=0.8)
    with resource_errors(f"cannot write {path}"):
        figure.savefig(path)


def _errorbars(panel: Any, places: Sequence[float], gains: Sequence[Mapping[str, Any]], words: str) -> None:
    means = [gain["mean"] for gain in gains]
    below = [gain["mean"] - (gain["mean"] if gain["low"] is None else gain["low"]) for gain in gains]
    above = [(gain["mean"] if gain["high"] is None else gain["high"]) - gain["mean"] for gain in gains]
    # A percentile interval need not hold the mean.
    bars = [[max(0.0, value) for value in side] for side in (below, above)]
    panel.errorbar(places, means, yerr=bars, marker="o", markersize=3, capsize=2, linewidth=1, label=words)
