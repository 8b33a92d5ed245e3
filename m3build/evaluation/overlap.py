"""How much of a reference stands in a text: the paper's leak filter (arXiv 2407.01178, eq. 6), exactly.

overlap(t, r) = N / |r|, N the largest number for which there are i_1 < … < i_N in t and j_1 < … < j_N in r
with equal tokens at i_k and j_k, and i_N − i_1 ≤ 2·|r|. So N is the longest common subsequence of r and any
stretch of 2·|r| + 1 tokens of t.

Design choices:

- A stretch can hold no longer common subsequence than the tokens that it has in common with r, each as often
  as in the one that has it less often. That bound comes for all stretches in one pass over t; only those
  whose bound is over the best that was found are looked at closely, best bound first. Of texts that do not
  hold the reference none is.
- The longest common subsequence of one stretch is computed with a bit for each token of r, one addition a
  token of t (Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

# Over this share a retrieved reference is left out (paper, §"Leak filter").
LIMIT = 2 / 3


def overlap(text: Sequence[int], reference: Sequence[int]) -> float:
    """The paper's overlap of a text with a reference, both token ids: 0.0 to 1.0; 0.0 for an empty
    reference."""
    return _longest(text, reference, 0, len(reference)) / len(reference) if len(reference) else 0.0


def overlaps(text: Sequence[int], reference: Sequence[int], limit: float = LIMIT) -> bool:
    """Whether ``overlap(text, reference)`` is over ``limit``; quicker where it is far from it."""
    size = len(reference)
    # The least N for which N / size, as computed, is over the limit.
    enough = next((n for n in range(size + 1) if size and n / size > limit), size + 1)
    return _longest(text, reference, max(enough - 1, 0), enough) >= enough


def _longest(text: Sequence[int], reference: Sequence[int], known: int, enough: int) -> int:
    """The largest N if it is over ``known`` (else ``known``), or the first found that reaches ``enough``."""
    places: dict[int, int] = {}
    for place, token in enumerate(reference):
        places[token] = places.get(token, 0) | 1 << place
    shared = [(place, token) for place, token in enumerate(text) if token in places]
    best = known
    stretches = _stretches(shared, Counter(reference), 2 * len(reference))
    for bound, first, last in sorted((some for some in stretches if some[0] > known), reverse=True):
        if bound <= best or best >= enough:
            break
        best = max(best, _common(shared[first : last + 1], places, len(reference)))
    return best


def _stretches(
    shared: Sequence[tuple[int, int]], wanted: Counter[int], span: int
) -> Iterator[tuple[int, int, int]]:
    """For each stretch of the text that is not part of another one: an upper bound of N and its first and
    last index into ``shared``, the (place, token) pairs of the text whose token the reference has."""
    have: dict[int, int] = {}
    bound = first = 0
    for last, (place, token) in enumerate(shared):
        if place - shared[first][0] > span:
            yield bound, first, last - 1
            while place - shared[first][0] > span:
                leaving = shared[first][1]
                bound -= have[leaving] <= wanted[leaving]
                have[leaving] -= 1
                first += 1
        have[token] = have.get(token, 0) + 1
        bound += have[token] <= wanted[token]
    if shared:
        yield bound, first, len(shared) - 1


def _common(stretch: Sequence[tuple[int, int]], places: dict[int, int], size: int) -> int:
    """Length of the longest common subsequence of a stretch and the reference."""
    ones = (1 << size) - 1
    # A bit is 0 where the row of the usual table grows by one.
    row = ones
    for _, token in stretch:
        match = row & places[token]
        row = ((row + match) | (row - match)) & ones
    return size - row.bit_count()
