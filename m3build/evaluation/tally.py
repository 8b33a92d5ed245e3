"""Sums of losses by document and by query chunk, and the means and intervals that come of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.evaluation.bootstrap import Interval, mean_per_token
from m3build.evaluation.losses import BOS, CONTROL, PLAIN, VARIANTS, TokenLosses

_Floats = npt.NDArray[np.float64]


class Tally:
    """Collects windows. Query chunks are counted by their place in the window."""

    def __init__(self, variants: Sequence[str], chunks: int) -> None:
        """``chunks``: the most query chunks of a window."""
        self._chunks = chunks
        # By document: characters; predicted tokens (chunks,); losses (chunks,) by variant.
        self.characters: list[int] = []
        self.tokens: list[_Floats] = []
        self.sums: dict[str, list[_Floats]] = {name: [] for name in variants}

    def open_document(self, characters: int) -> None:
        """A further document, of this many characters."""
        self.characters.append(characters)
        self.tokens.append(np.zeros(self._chunks))
        for sums in self.sums.values():
            sums.append(np.zeros(self._chunks))

    def add(self, document: int, chunk_tokens: int, losses: Mapping[str, TokenLosses]) -> None:
        """Losses of one window of a document, by variant."""
        for name, own in losses.items():
            np.add.at(self.sums[name][document], np.arange(len(own)) // chunk_tokens, own)
        size = len(losses[PLAIN])
        np.add.at(self.tokens[document], np.arange(size) // chunk_tokens, 1)

    @property
    def total_tokens(self) -> int:
        """Predicted tokens of all documents."""
        return int(sum(tokens.sum() for tokens in self.tokens))

    def results(self, seed: int) -> dict[str, Any]:
        """``loss``, ``gain`` and the like as JSON; raises ValueError where no token was predicted."""
        tokens = np.array(self.tokens)
        sums = {name: np.array(rows) for name, rows in self.sums.items()}
        none = PLAIN if sums[PLAIN].sum() <= sums[BOS].sum() else BOS
        per_document = [int(n) for n in tokens.sum(axis=1)]

        def difference(better: str, worse: str, chunk: int | None = None) -> Interval:
            apart = sums[worse] - sums[better]
            if chunk is None:
                return mean_per_token(apart.sum(axis=1).tolist(), per_document, seed)
            return mean_per_token(apart[:, chunk].tolist(), [int(n) for n in tokens[:, chunk]], seed)

        total = float(tokens.sum())
        names = {"none": none, **{name: name for name in VARIANTS}}
        loss = {name: float(sums[source].sum() / total) for name, source in names.items()}
        gain = {name: difference(source, none) for name, source in names.items()}
        ranks = [name for name in sums if name.startswith("rank")]
        control = {}
        if CONTROL in sums:
            control = {
                "control": {
                    "loss": float(sums[CONTROL].sum() / total),
                    "gain_over": difference("quantized", CONTROL).to_json(),
                }
            }
        exact, quantized = gain["exact"].mean, gain["quantized"].mean
        return {
            "tokens": int(total),
            "documents": len(self.tokens),
            "characters": sum(self.characters),
            "loss": loss,
            "none": {
                "plain": float(sums[PLAIN].sum() / total),
                "reference_bos": float(sums[BOS].sum() / total),
                "taken": "plain" if none == PLAIN else "reference_bos",
            },
            "gain": {name: interval.to_json() for name, interval in gain.items()},
            "gain_over_random": difference("quantized", "random").to_json(),
            **control,
            # A share of nothing, or of a loss, says nothing.
            "gain_kept": quantized / exact if exact > 0 and (gain["exact"].low or 0.0) > 0 else None,
            "bits_per_character": {
                name: float(sums[source].sum() / math.log(2) / max(1, sum(self.characters)))
                for name, source in names.items()
            },
            "by_chunk": [
                {
                    "chunk": chunk,
                    "tokens": int(tokens[:, chunk].sum()),
                    "gain": {name: difference(name, none, chunk).to_json() for name in VARIANTS},
                }
                for chunk in range(self._chunks)
                if tokens[:, chunk].sum()
            ],
            "by_rank": [
                {"rank": number, "gain": difference(name, none).to_json()}
                for number, name in enumerate(ranks, 1)
            ],
        }
