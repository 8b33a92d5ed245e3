"""Device and number type that a model runs with."""

from __future__ import annotations

import os
import platform

import torch

from m3build_formats.errors import UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Compiled kernels that oneDNN and torch's layer above it keep; both read their limit when they are first
# used, the latter in each thread.
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 16, "LRU_CACHE_CAPACITY": 16}


def bound_kernel_caches() -> None:
    """Keep what compiled bfloat16 kernels take small: oneDNN compiles one for every shape of a matrix product
    and keeps 1,024 of about 0.5 MiB each, so that memory would grow with the number of batch shapes a corpus
    happens to have. Compiling one anew takes a millisecond.

    Holds for this process, unless the environment says otherwise or oneDNN has been used before.
    """
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, str(capacity))


def choose_device(asked: str) -> torch.device:
    """``auto`` is cuda where there is one, else mps, else cpu. Raises UsageError for a device that is not
    there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if asked not in there:
        raise UsageError(f"no device '{asked}'; there are {', '.join(DEVICES)}.")
    if not there[asked]:
        raise UsageError(f"torch finds no {asked} device on this machine; use --device auto.")
    return torch.device(asked)


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the device computes it natively, else float32. Raises UsageError for an
    unknown name."""
    if asked == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    if asked not in DTYPES:
        raise UsageError(f"no dtype '{asked}'; there are auto, {', '.join(DTYPES)}.")
    return DTYPES[asked]


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` → ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def native_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run in hardware there.

    On CPUs this goes by the instruction set (AVX-512 BF16 or AMX; Arm BF16 on Linux), never by timing, so
    that the same machine always makes the same bytes. Without them bfloat16 runs a hundred times slower than
    float32. On macOS the CPU's BLAS has no bfloat16, while Metal computes it from macOS 14 on.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    if platform.system() == "Darwin":
        return False
    able = torch.cpu.get_capabilities()
    return bool(
        able.get("avx512_bf16")
        or able.get("amx_bf16")
        or (able.get("architecture") != "x86_64" and able.get("bf16"))
    )
