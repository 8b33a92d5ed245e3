"""From what was asked for (a preset or a codec string) to a codec that fits the heads, the sample and the
time there is.

``memory3`` is the paper's codec at head dimension 80 (§3.3: OPQ20_80,Residual2x14,PQ8x10, 108 bits in 14
bytes) and, at others, the same construction at the same nominal rate of 1.35 bit per dimension and at most as
many bytes, rounded up. ``memory3-small`` has the same rate with far fewer centroids. Below 32 dimensions both
do without a first level, whose bytes would be mostly padding.

``auto`` walks down a ladder of such codecs, from most centroids to fewest, and takes the first that passes
three tests:

- vectors: at least 39 training vectors for each centroid (FAISS's own measure);
- encoding: at most a fifth of the time of the forward pass. Both are reckoned in FLOPs; quantizing's count 12
  more for each score, which is what finding the least of them costs beside the products, and are taken to run
  at ``quantizer_speed`` of the model's FLOP/s. On a CPU with AVX2 one core did memory3's work at 0.52 of the
  speed of a model's matrix products (56 µs a vector). What neither counts is a fixed cost per vector (1 to 2
  µs) and what a model does beside its products; they weigh alike on tiny models: with a model of 260,000
  parameters 0.16 ms a reference against 1.6 ms for two layers of the forward pass;
- training: it and encoding together at most half of the time of the forward passes over the corpus. Training
  costs as many assignments as encoding the sample once for each k-means iteration, so it weighs on small
  corpora and vanishes on large ones; a few seconds are always granted.

More centroids at the same bytes are better on real keys and values: on those of a trained model (32
dimensions, 6 bytes) the error of values was 0.051 with Residual2x12, 0.084 with 2x10, 0.121 with 2x8 and 0.15
with none and 6 bits a block.

A codec asked for by name is only made smaller where the sample leaves no choice (under 8 vectors a centroid),
and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from m3build.codec.spec import CodecSpec, parse_spec
from m3build.codec.train import (
    FIRST_LEVEL_ITERATIONS,
    LEAST_SAMPLE,
    PRODUCT_ITERATIONS,
    training_vectors_wanted,
)
from m3build_formats.errors import UsageError

PRESETS = ("auto", "memory3", "memory3-small")
RATE = 1.35
"""Nominal bits per dimension of the paper's codec: 108 / 80."""

ENCODING_SHARE = 0.2
TRAINING_SHARE = 0.5
FREE_TRAINING_FLOPS = 2e11
DEFAULT_QUANTIZER_SPEED = 0.5
SCORE_WORK = 12
GOOD_POINTS, LEAST_POINTS = 39, 8
"""Training vectors per centroid: what FAISS recommends, and what is refused below."""

_LEAST_BITS = 4
_FIRST_LEVEL_FROM = 32
_TOLERANCE = 0.055
# (most first-level bits, most bits of a PQ block) of each rung below memory3
_RUNGS = ((12, 10), (10, 9), (8, 9), (0, 8), (0, 7), (0, 6), (0, 5), (0, 4))


@dataclass(frozen=True, slots=True)
class Resolved:
    """The codec to use, and what the user should be told about the choice."""

    spec: CodecSpec
    warnings: tuple[str, ...] = ()


def resolve_codec(
    text: str,
    head_dim: int,
    *,
    training_vectors: int,
    forward_flops: float | None = None,
    vectors: int | None = None,
    quantizer_speed: float = DEFAULT_QUANTIZER_SPEED,
) -> Resolved:
    """Find the codec for a preset's name or a codec string.

    ``training_vectors``: those available to each codebook; ``forward_flops`` and ``vectors``: of one full
    reference (without them cost is no criterion); ``quantizer_speed``: FLOP/s of quantizing over FLOP/s of
    the forward pass, which depends on device and dtype. UsageError for an unknown name or a string that does
    not fit ``head_dim``.
    """
    if text == "auto":
        budget = forward_flops / vectors * quantizer_speed if forward_flops and vectors else None
        return _auto(head_dim, training_vectors, budget)
    if text == "memory3":
        spec = memory3(head_dim)
    elif text == "memory3-small":
        spec = memory3_small(head_dim)
    else:
        try:
            spec = parse_spec(text)
        except UsageError as error:
            raise UsageError(f"{error}; or a preset: {', '.join(PRESETS)}") from None
    spec.check_head_dim(head_dim)
    return fit_to_sample(spec, training_vectors)


def memory3(head_dim: int) -> CodecSpec:
    """The paper's codec, or its like for another head dimension. OPQ works on blocks of 4 dimensions as
    the paper's does.
    """
    most = 14 if head_dim >= 48 else 12
    spec = _at_rate(head_dim, most, 11 if head_dim < _FIRST_LEVEL_FROM else 10)
    if spec.transform == "OPQ" and head_dim % 4 == 0 and spec.first_level_bits:
        return replace(spec, transform_blocks=head_dim // 4)
    return spec


def memory3_small(head_dim: int) -> CodecSpec:
    """The same rate with at most 2^10 first-level centroids and 2^9 in a block: less than a tenth of the
    cost.
    """
    return _at_rate(head_dim, 10, 9)


def fit_to_sample(spec: CodecSpec, training_vectors: int) -> Resolved:
    """Make a codec's codebooks small enough for ``training_vectors`` vectors each, at last ``none``; the
    warnings say what was done.
    """
    if not spec.is_trained:
        return Resolved(spec)
    counted = f"{training_vectors:,} vectors to train each codebook on"
    bits = (training_vectors // LEAST_POINTS).bit_length() - 1
    if bits < _LEAST_BITS or (spec.transform == "PCA" and training_vectors < spec.transform_dim):
        return Resolved(
            CodecSpec(), (f"codec {spec}: {counted} are too few; memories are stored unquantized (none)",)
        )
    smaller = replace(
        spec,
        first_level_bits=min(spec.first_level_bits, bits),
        pq_bits=min(spec.pq_bits, bits) if spec.fine == "PQ" else 0,
    )
    if smaller != spec:
        return Resolved(smaller, (f"codec {spec}: {counted} are too few; using {smaller}",))
    if training_vectors < GOOD_POINTS * spec.centroids():
        wanted = GOOD_POINTS * spec.centroids()
        return Resolved(spec, (f"codec {spec}: {counted}, {wanted:,} would be better",))
    return Resolved(spec)


def encoding_work(spec: CodecSpec, head_dim: int) -> float:
    """What encoding one vector costs, in FLOPs that take as long."""
    d = spec.code_dim(head_dim)
    transform = 2 * head_dim * d if spec.transform else 0
    return float(transform + _first_level_work(spec, d) + _product_work(spec, d))


def training_work(spec: CodecSpec, head_dim: int, training_vectors: int) -> float:
    """What the k-means assignments that train one codebook cost, in FLOPs that take as long; OPQ's few
    seconds are not counted.
    """
    d = spec.code_dim(head_dim)
    sample = min(training_vectors, training_vectors_wanted(spec))
    rounds = FIRST_LEVEL_ITERATIONS * _first_level_work(spec, d)
    # FAISS's k-means takes no more vectors for the small codebooks than for 256 centroids
    return float(sample * rounds + min(sample, LEAST_SAMPLE) * PRODUCT_ITERATIONS * _product_work(spec, d))


def _first_level_work(spec: CodecSpec, d: int) -> int:
    return 2 * (d + SCORE_WORK) << spec.first_level_bits if spec.first_level_bits else 0


def _product_work(spec: CodecSpec, d: int) -> int:
    return (2 * d + spec.pq_blocks * SCORE_WORK) << spec.pq_bits if spec.fine == "PQ" else 0


def _auto(head_dim: int, training_vectors: int, budget: float | None) -> Resolved:
    """``budget``: FLOPs of quantizing in the time of the forward pass of one vector, None for no limit."""
    ladder = [_at_rate(head_dim, first, bits, fill=True) for first, bits in _RUNGS]
    if head_dim >= _FIRST_LEVEL_FROM:
        ladder.append(memory3(head_dim))
    ladder.sort(key=lambda spec: -encoding_work(spec, head_dim))
    trainable = [spec for spec in ladder if GOOD_POINTS * spec.centroids() <= training_vectors]
    if not trainable:
        return Resolved(
            CodecSpec(),
            (
                f"codec auto: {training_vectors:,} vectors to train on are too few; "
                "memories are stored unquantized (none)",
            ),
        )
    for spec in trainable:
        if budget is None:
            return Resolved(spec)
        encoding = encoding_work(spec, head_dim)
        training = training_work(spec, head_dim, training_vectors)
        affordable = encoding + training / training_vectors <= TRAINING_SHARE * budget
        if encoding <= ENCODING_SHARE * budget and (affordable or training <= FREE_TRAINING_FLOPS):
            return Resolved(spec)
    return Resolved(
        trainable[-1],
        (
            f"codec auto: even {trainable[-1]} takes over a fifth of the forward pass; "
            "`none` would be quicker",
        ),
    )


def _at_rate(head_dim: int, most_first: int, most_bits: int, *, fill: bool = False) -> CodecSpec:
    """The codec at 1.35 bit per dimension with at most these bits in the first level and in a block.

    Among those near the rate (5.5 %) and no more bytes than it takes, the one with the most first-level bits
    wins, then fewer bytes, then more bits a block; if none is, the nearest. ``fill``: below 32 dimensions,
    where padding dominates, use the bits of the last byte too.
    """
    target = RATE * head_dim
    byte_limit = int(-(-target // 8))
    if fill and head_dim < _FIRST_LEVEL_FROM:
        target = 8.0 * byte_limit
    with_first = head_dim >= _FIRST_LEVEL_FROM and head_dim % 2 == 0 and most_first > 0
    options: list[tuple[tuple[float, ...], CodecSpec]] = []
    for first in range(most_first, max(most_first - 4, _LEAST_BITS) - 1, -1) if with_first else (0,):
        for blocks in (
            m for m in range(1, head_dim + 1) if head_dim % m == 0 and (head_dim // m <= 12 or m == 1)
        ):
            for bits in range(1, most_bits + 1):
                spec = CodecSpec("", 0, 0, first, "PQ", blocks, bits)
                off = abs(spec.nominal_bits(head_dim) - target) / target
                size = spec.bytes_per_vector(head_dim)
                near = off <= _TOLERANCE and size <= byte_limit
                order = (0.0, -first, size, -bits) if near else (1.0, off, size, -bits)
                options.append((order, spec))
    best = min(options, key=lambda option: option[0])[1]
    if best.pq_blocks == 1 and not best.first_level_bits:
        return best
    return replace(best, transform="OPQ", transform_blocks=best.pq_blocks, transform_dim=head_dim)
