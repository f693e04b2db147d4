"""Float32 means float32 while norms and sums are taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# No float32 product is added to more than this many others before the sum moves on in float64.
CHAIN = 128


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products in their tensors' own type, whatever the caller has switched on: autocast, TF32,
    bfloat16 passes. With fewer digits a norm can come out below that of the sum which it bounds."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def wide(x: Tensor) -> Tensor:
    """``x`` in at least float32: half-precision squares overflow, and their sums lose the small terms."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def inner_products(x: Tensor, y: Tensor) -> Tensor:  # [B,S,K], [B,T,K] -> [B,S,T], float64
    """``x y^T``, taken in float32 or wider, within ``CHAIN`` roundings of the exact value.

    A float32 product over thousands of terms is off by up to one rounding a term (long runs of similar
    terms round the same way); in pieces it costs a fifth more and the error no longer grows with K. Half precision
    is widened piece by piece too, while the piece is in the processor's cache."""
    out = x.new_zeros(x.shape[0], x.shape[1], y.shape[1], dtype=torch.float64)
    for start in range(0, x.shape[2], CHAIN):
        columns = slice(start, start + CHAIN)
        out += wide(x[:, :, columns]) @ wide(y[:, :, columns]).mT
    return out
