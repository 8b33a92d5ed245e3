"""What the figures say, in a sentence: whether memories help at all, and more than any others would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNTRAINED = "A model that was never trained to read memories seldom gains from them."


def conclude(results: Mapping[str, Any]) -> str:
    """The sentence for ``gain`` and ``gain_over_random`` of an evaluation's results.

    There is a gain only where the whole interval lies above zero, and the whole interval of what the
    retrieved memories save more than random ones does too.
    """
    gain, over = results["gain"]["quantized"], results["gain_over_random"]
    if gain["low"] is None or over["low"] is None:
        return "One document gives no interval: whether there is a gain cannot be said. Evaluate on more."
    if gain["low"] <= 0:
        which = "a loss" if gain["high"] < 0 else "no gain"
        return f"There is {which}: the memories save {_shown(gain)} nats per token. {UNTRAINED}"
    if over["low"] <= 0:
        return (
            f"There is no gain from what was retrieved: it saves {_shown(gain)} nats per token, memories of "
            f"random references as much (difference {_shown(over)})."
        )
    leak = " Retrieval saw the text that was predicted." if results["text"]["query"] == "own" else ""
    return f"The memories save {_shown(gain)} nats per token, {_shown(over)} more than random ones do.{leak}"


def _shown(interval: Mapping[str, Any]) -> str:
    """Of a gain: the mean and its interval."""
    return f"{interval['mean']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"
