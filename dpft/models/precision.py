"""Which number type the model's matrix products run in."""

from __future__ import annotations

from typing import Literal

import torch

from dpft.errors import InputError

Precision = Literal["auto", "float32", "bfloat16"]


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """bfloat16 or float32; ``auto`` takes bfloat16 where the hardware multiplies in it natively.

    Norms, clip factors, sums and noise are float32 or float64 whatever this says."""
    if precision == "auto":
        return torch.bfloat16 if _native_bfloat16(device) else torch.float32
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"Expected train.precision={precision!r} to be auto, float32 or bfloat16.")
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def products_in(compute: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which matrix products run in ``compute``; float32 changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=compute == torch.bfloat16)


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def attention_for(compute: torch.dtype, device: torch.device) -> str | None:
    """The attention implementation to ask transformers for; None for its own choice.

    On a CPU in bfloat16 the fused kernel takes ten times the plain products (measured: docs/log.md)."""
    return "eager" if device.type == "cpu" and compute == torch.bfloat16 else None
