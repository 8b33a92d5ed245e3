"""How well a codec does on unit Gaussian vectors, and what it costs: relative mean squared error on fresh
ones, seconds of training, vectors/s of encoding.

    python tests/benchmarks/codec_gaussian.py [--codec memory3] [--dim 80] [--train 640000] [--test 20000]

The `memory3` codec (1.35 bit per dimension) at 80 dimensions must reach 0.245, what an untrained rotation
with a scalar quantizer does; the bound of information theory at that rate is 2^(−2·1.35) = 0.154. Exits 1 if
not.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from m3build.codec.encoder import TorchEncoder
from m3build.codec.presets import resolve_codec
from m3build.codec.train import train_codec

LIMIT = 0.245


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--codec", default="memory3")
    options.add_argument("--dim", type=int, default=80)
    options.add_argument("--train", type=int, default=640_000)
    options.add_argument("--test", type=int, default=20_000)
    options.add_argument("--limit", type=float, default=LIMIT)
    given = options.parse_args()
    spec = resolve_codec(given.codec, given.dim, training_vectors=given.train).spec
    bits = spec.nominal_bits(given.dim)
    print(
        f"{spec}: {spec.bytes_per_vector(given.dim)} bytes, {bits / given.dim:.3f} bit per dimension",
        flush=True,
    )

    rng = np.random.default_rng(0)
    # half of the draw poses as keys, half as values: with scope `all` they train one codebook together
    draw = rng.standard_normal((2, given.train // 2, 1, 1, given.dim), dtype=np.float32)
    positions = np.zeros(draw.shape[1:4], np.uint8)
    start = time.perf_counter()
    codec = train_codec(spec, "all", ((0, 0),), draw[0], draw[1], positions)
    print(f"trained in {time.perf_counter() - start:.1f} s", flush=True)

    fresh = rng.standard_normal((given.test, 1, 1, given.dim), dtype=np.float32)
    positions = np.zeros((given.test, 1, 1), np.uint8)
    start = time.perf_counter()
    encoder = TorchEncoder(codec, "cpu")
    print(f"encoder ready in {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    codes = encoder.encode(
        torch.from_numpy(fresh), torch.from_numpy(fresh), torch.from_numpy(positions)
    ).numpy()
    seconds = time.perf_counter() - start
    keys, _ = codec.decode_rows(codes)
    error = float(np.square(keys - fresh).sum() / np.square(fresh).sum())
    print(f"{2 * given.test / seconds:,.0f} vectors/s encoded on {torch.get_num_threads()} threads")
    print(
        f"relative mean squared error {error:.4f}, limit {given.limit}, "
        f"bound {2 ** (-2 * bits / given.dim):.4f}"
    )
    return 0 if error <= given.limit else 1


if __name__ == "__main__":
    raise SystemExit(main())
