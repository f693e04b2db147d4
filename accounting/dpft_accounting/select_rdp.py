"""The Rényi bound on the best of K runs (Papernot & Steinke 2022, theorems 2 and 6). Conditions: see ``select.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .combined import Select
from .select import gamma


def best_curve(select: Select, orders: Sequence[float], base: Sequence[float]) -> list[float]:
    """Rényi divergence of the selection at each of ``orders``, from the base's at the same orders."""
    if select.dist == "poisson":
        return [_poisson(select.mean, order, r, orders, base) for order, r in zip(orders, base, strict=True)]
    assert select.shape is not None  # all but Poisson have one
    eta = select.shape
    log_gamma = -math.log(gamma(select))
    # The order of the second term is free, so the best is the same for all.
    extra = min((1 + eta) * ((1 - 1 / order) * r + log_gamma / order) for order, r in zip(orders, base, strict=True))
    return [r + extra + math.log(select.mean) / (order - 1) for order, r in zip(orders, base, strict=True)]


def _poisson(mean: float, order: float, own: float, orders: Sequence[float], base: Sequence[float]) -> float:
    """ε(λ) + m·δ̂ + ln(m)/(λ − 1), δ̂ the base's δ at ε̂ = ln(1 + 1/(λ − 1)) by the conversion of ``rdp.py``."""
    epsilon = math.log1p(1 / (order - 1))
    log_delta = min(
        (a - 1) * (r + math.log1p(-1 / a) - epsilon) - math.log(a) for a, r in zip(orders, base, strict=True)
    )
    # A mean below 1 makes the last term negative; it is left out, which only raises the bound.
    return own + mean * math.exp(min(0.0, log_delta)) + max(0.0, math.log(mean)) / (order - 1)
