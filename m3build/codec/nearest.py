"""The nearest centroid of each vector, exactly, at the speed of a low-precision matrix product.

Two 2^14-way assignments per vector are most of what quantizing costs, so they are done in two passes:

1. Shortlist. Half squared distances ½|x|² + ½|c|² − x·c to all centroids in a cheap number format, as one
   matrix product (the constants ride along as extra dimensions), a tile at a time so that a tile's scores
   stay in the processor's cache. Only the minimum of each group of centroids is kept, and a rigorous bound on
   its rounding error.
2. Decision. Groups that could hold the nearest centroid, given those bounds (one to three as a rule), are
   scored again in float64.

The answer is therefore that of float64 arithmetic whatever the shortlist's format, tile, batch or thread
count: a vector's code does not depend on its neighbours. Equal centroids are one, the first. Centroids are
grouped by norm, since the error bound grows with the norm.

The shortlist is bfloat16 where the device multiplies bfloat16 natively (x86 with AVX-512 bfloat16 or AMX,
CUDA), else float32. If bfloat16 separates a codebook badly (a very fine one far from the origin) its
shortlists get long and that block is done again in float32.
"""

from __future__ import annotations

import torch

SMALL_GROUP, LARGE_GROUP = 32, 64
"""Centroids whose scores share one minimum, in codebooks of under 4,096 and in larger ones. Fewer mean more
bookkeeping, more mean more work in the decision; measured best on a CPU."""

DIRECT = 64
"""Codebooks up to this size skip the shortlist: float64 scores of all centroids."""

_TILE_VECTORS, _TILE_CENTROIDS = 512, 1024
_BLOCK_VECTORS = 4096
_CUDA_TILE_VECTORS, _CUDA_BLOCK_VECTORS = 8192, 65536
_ROWS = 16
_DECISION_SLICE = 2048
_LONGEST_SHORTLIST = 12
_FAR = 1e30
"""Half squared norm of a centroid that stands for nothing (padding, duplicates): finite in every format,
never near.
"""

_BFLOAT16_ROUNDING = 2.0**-8 * 1.01


def native_shortlist_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where matrix products in it are native on ``device``, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else torch.float32
    return torch.float32


class NearestCentroid:
    """Assignment to one codebook: centroids (C, d) float32, held on ``device``. Read-only after
    construction.
    """

    def __init__(
        self, centroids: torch.Tensor, device: torch.device, shortlist_dtype: torch.dtype | None = None
    ) -> None:
        count, self.dim = centroids.shape
        self.device = device
        self.exact_dtype = torch.float32 if device.type == "mps" else torch.float64
        centroids = centroids.detach().to("cpu", torch.float32)
        half_norm = (centroids.double() ** 2).sum(1) / 2
        half_norm[_is_duplicate(centroids)] = _FAR
        self.count = count
        self.direct = count <= DIRECT
        self.group = SMALL_GROUP if count < 4096 else LARGE_GROUP
        if self.direct:
            order = torch.arange(count)
        else:
            order = torch.argsort(half_norm, stable=True)
            padding = -count % self.group
            order = torch.cat([order, order[:1].expand(padding)])
            centroids, half_norm = centroids[order], half_norm[order]
            if padding:
                half_norm[-padding:] = _FAR
        self.order = order.to(device)
        self.half_norm = half_norm.to(device, self.exact_dtype)
        self.centroids = centroids.to(device, self.exact_dtype)
        if self.direct:
            return
        # (groups, d, group): the layout that the decision's batched product reads
        self.by_group = self.centroids.view(-1, self.group, self.dim).transpose(1, 2).contiguous()
        self.half_norm_by_group = self.half_norm.view(-1, self.group)
        first = shortlist_dtype or native_shortlist_dtype(device)
        # CUDA's float32 products may be set to TF32, which the bounds know nothing of
        last = torch.float64 if device.type == "cuda" else torch.float32
        dtypes = [first, last] if first == torch.bfloat16 else [first]
        self.shortlists = [_Shortlist(centroids, half_norm, self.group, dtype, device) for dtype in dtypes]

    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (n, d) float32 on the codebook's device, finite → indices (n,) int64 of their nearest
        centroids.
        """
        if not len(vectors):
            return torch.empty(0, dtype=torch.int64, device=self.device)
        if self.direct:
            return self._assign_direct(vectors)
        block = _CUDA_BLOCK_VECTORS if self.device.type == "cuda" else _BLOCK_VECTORS
        return torch.cat([self._assign_block(part) for part in torch.split(vectors, block)])

    def _assign_direct(self, vectors: torch.Tensor) -> torch.Tensor:
        # scores are (C, n): the minimum over the first dimension is the one that vectorises
        scores = torch.addmm(
            self.half_norm[:, None], self.centroids, vectors.to(self.exact_dtype).t(), alpha=-1
        )
        return scores.argmin(0)

    def _assign_block(self, vectors: torch.Tensor) -> torch.Tensor:
        *cheap, last = self.shortlists
        for shortlist in cheap:
            groups, members = shortlist.candidates(vectors)
            if len(members) <= _LONGEST_SHORTLIST * len(vectors):
                return self._decide(vectors, groups, members)
        return self._decide(vectors, *last.candidates(vectors))

    def _decide(self, vectors: torch.Tensor, groups: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        """Nearest centroid among the candidate (group, vector) pairs, which come sorted by group."""
        exact = vectors.to(self.exact_dtype)
        # Lay the pairs out in blocks of _ROWS that share a group, so that one batched product scores them
        # all.
        sizes = torch.bincount(groups, minlength=len(self.by_group))
        blocks = (sizes + _ROWS - 1) // _ROWS
        block_group = torch.repeat_interleave(torch.arange(len(sizes), device=self.device), blocks)
        starts = (blocks.cumsum(0) - blocks) * _ROWS - (sizes.cumsum(0) - sizes)
        place = starts[groups] + torch.arange(len(groups), device=self.device)
        member_at = torch.zeros(len(block_group) * _ROWS, dtype=torch.int64, device=self.device)
        member_at[place] = members
        member_at = member_at.view(-1, _ROWS)
        least, index = [], []
        for at in range(0, len(block_group), _DECISION_SLICE):
            which = block_group[at : at + _DECISION_SLICE]
            scores = torch.baddbmm(
                self.half_norm_by_group[which][:, None, :],
                exact[member_at[at : at + _DECISION_SLICE]],
                self.by_group[which],
                alpha=-1,
            )
            low = scores.min(2)
            least.append(low.values.flatten())
            index.append((low.indices + which[:, None] * self.group).flatten())
        score, winner = torch.cat(least)[place], torch.cat(index)[place]
        best = torch.full((len(vectors),), torch.inf, dtype=score.dtype, device=self.device)
        best.scatter_reduce_(0, members, score, "amin")
        first = torch.full((len(vectors),), len(self.order) - 1, dtype=torch.int64, device=self.device)
        wins = score == best[members]
        first.scatter_reduce_(0, members[wins], winner[wins], "amin")
        return self.order[first]


class _Shortlist:
    """The low-precision pass over one codebook in one number format."""

    def __init__(
        self,
        centroids: torch.Tensor,
        half_norm: torch.Tensor,
        group: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.group, self.dtype, self.device = group, dtype, device
        rounded = centroids.to(dtype)
        parts = _split(half_norm, dtype)
        ones = torch.ones(len(centroids), len(parts), dtype=dtype)
        columns = [-rounded, torch.stack(parts, 1), ones]
        self.augmented = torch.cat(columns, 1).contiguous().to(device)
        self.parts = len(parts)
        real = (half_norm < _FAR).double()
        by_group = (len(centroids) // group, group)

        def largest(values: torch.Tensor) -> torch.Tensor:
            return (values * real).view(by_group).amax(1, keepdim=True).float().to(device)

        norm = largest(rounded.double().norm(dim=1))
        loss = largest((centroids.double() - rounded.double()).norm(dim=1))
        constant = (self.augmented.shape[1] + 8) * 2.0**-24 * largest(half_norm)
        # (groups, 4): times four numbers of a vector this is the bound on the error of its scores in a group
        self.of_groups = torch.cat([norm, loss, torch.ones_like(norm), constant], 1)

    def candidates(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (n, d) float32 → pairs (group, vector), int64, sorted by group: every group that may
        hold the nearest.
        """
        rounded = vectors.to(self.dtype)
        half = (vectors * vectors).sum(1) / 2
        ones = torch.ones(len(vectors), self.parts, dtype=self.dtype, device=self.device)
        augmented = torch.cat([rounded, ones, torch.stack(_split(half, self.dtype), 1)], 1)
        low = self._group_minima(augmented)
        norm = vectors.norm(dim=1)
        loss = (vectors - rounded.float()).norm(dim=1)
        # |x·c − x'·c'| ≤ |x − x'||c'| + |x||c − c'|; float32 accumulation of K terms; the score's own
        # rounding; the split constants
        accumulation = (augmented.shape[1] + 8) * 2.0**-24
        of_vectors = torch.stack(
            [loss + accumulation * norm, norm, accumulation * half, torch.ones_like(half)]
        )
        bound = self.of_groups @ of_vectors
        if self.dtype == torch.bfloat16:
            bound += low.abs() * _BFLOAT16_ROUNDING
        ceiling = (low + bound).amin(0)
        # the bounds are float32 sums themselves: one part in 10^5 covers their own rounding
        pairs = (low - bound * 1.00001 <= ceiling + ceiling.abs() * 1e-6).nonzero()
        return pairs[:, 0], pairs[:, 1]

    def _group_minima(self, augmented: torch.Tensor) -> torch.Tensor:
        """(n, K) → the least score of each group, (groups, n) float32."""
        cuda = self.device.type == "cuda"
        tile = _CUDA_TILE_VECTORS if cuda else _TILE_VECTORS
        step = len(self.augmented) if cuda else _TILE_CENTROIDS
        # Half squared distances are not negative, so the bits of their bfloat16 order them as integers do,
        # and integer minima are four times as fast. Rounding can make a score negative; then the least
        # integer is some negative score of the group, which is as good: it is below every true distance.
        compared = torch.int16 if self.dtype == torch.bfloat16 else self.dtype
        tiles: list[torch.Tensor] = []
        for part in torch.split(augmented, tile):
            columns = part.t()
            low = torch.empty(
                len(self.augmented) // self.group, len(part), dtype=compared, device=self.device
            )
            for at in range(0, len(self.augmented), step):
                scores = torch.mm(self.augmented[at : at + step], columns).view(compared)
                groups = slice(at // self.group, (at + len(scores)) // self.group)
                torch.amin(scores.view(-1, self.group, len(part)), 1, out=low[groups])
            tiles.append(low.view(self.dtype).float())
        return torch.cat(tiles, 1)


def _split(values: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Write values as a sum of numbers of ``dtype``, to 24 bits: three of bfloat16, one of the others."""
    parts: list[torch.Tensor] = []
    rest = values.double() if values.device.type != "mps" else values
    for _ in range(3 if dtype == torch.bfloat16 else 1):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].to(rest.dtype)
    return parts


def _is_duplicate(centroids: torch.Tensor) -> torch.Tensor:
    """True for centroids that equal an earlier one (−0 counts as 0)."""
    _, inverse = torch.unique(centroids + 0.0, dim=0, return_inverse=True)
    places = torch.arange(len(centroids))
    first = torch.full((len(centroids),), len(centroids)).scatter_reduce_(0, inverse, places, "amin")
    return first[inverse] != places
