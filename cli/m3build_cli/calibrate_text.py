"""A calibration, for people."""

from __future__ import annotations

from pathlib import Path

from m3build.calibration import Calibration
from m3build.calibration.calibrate import COPYING_HEAD


def describe_calibration(found: Calibration, written: Path | None) -> str:
    """Scores by layer, what was tried, and the recommendation."""
    width = 6 * found.scores.copying.shape[1]
    lines = [f"layer  {'copying, by query head':<{width}}  previous token, by query head"]
    for layer, (copying, previous) in enumerate(
        zip(found.scores.copying.tolist(), found.scores.previous.tolist(), strict=True)
    ):
        lines.append(f"{layer:>5}  {_row(copying):<{width}}  {_row(previous)}")
    lines += [
        "",
        f"passages cost {found.first_loss:.3f} nats a token, repeated in context {found.repeated_loss:.3f}",
        "",
        f"{'memory layers (heads)':<32}{'repeated':>8}{'gain':>9}{'going on':>20}{'gain':>9}",
        f"{'none':<32}{found.without_memory[0]:>8.3f}"
        + "".join(f"{loss:>29.3f}" for loss in found.without_memory[1:]),
    ]
    for choice in found.choices:
        name = ", ".join(
            str(layer) if len(heads) == found.kv_heads else f"{layer} ({', '.join(map(str, heads))})"
            for layer, heads in choice.heads.items()
        )
        gains = [gain for gain in (choice.repeated, choice.continued) if gain is not None]
        columns = [f"{gain.loss:>8.3f}{gain.mean:>+9.3f} ± {2 * gain.error:.3f}" for gain in gains]
        mark = "  recommended" if choice is found.recommended else ""
        lines.append(f"{name:<32}{'    '.join(columns)}{mark}")
    lines.append("")
    if found.recommended is None:
        lines.append(
            f"no recommendation: no head has {COPYING_HEAD:.0%} of its attention on what it could copy and"
            " memories gain nothing; the model needs training first (examples/teach_memory)"
        )
    elif written is not None:
        lines.append(f"written to {written}")
    return "\n".join(lines)


def _row(scores: list[float]) -> str:
    return " ".join(f"{score:5.2f}" for score in scores)
