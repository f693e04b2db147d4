"""Rational functions of one number, and their fit to another function (Molina et al. 2020, arXiv 1907.06732).

    R(x) = P(t) / Q(t),    t = x / c,    P = sum_{j=0..m} a_j t^j,    Q = 1 + sum_{k=1..n} |b_k t^k|

Q is at least 1, so there are no poles. "safe" is the published version A; "smooth" has sqrt(u^2 + e^2) - e in place of
|u|, e = 0.003, which has derivatives everywhere, those by b_k too. Coefficients are those of powers of t, which is in
[-1, 1] over the range of the fit: raw powers of x differ by c^5.

The fit looks at no data: least squares on Chebyshev nodes of [-c, c], linearised by the last Q (Sanathanan and Koerner
1963) and reweighted by the error (Lawson 1961), which brings the largest error down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, lsq_linear
from torch import Tensor

from dpft.errors import InputError

Version = Literal["safe", "smooth"]
Numbers = NDArray[np.float64]
Found = tuple[float, Numbers, Numbers]  # largest error, a, b
_SOFT = 3e-3  # e of "smooth"
_NODES, _ROUNDS = 1001, 60


@dataclass(frozen=True)
class Fit:
    """Coefficients a [m+1] and b [n] of powers of x / c, and the largest error on a fine grid of [-c, c]."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    error: float


def fit(function: Callable[[Tensor], Tensor], c: float, m: int, n: int, version: Version) -> Fit:
    """The rational function of degrees (m, n) nearest to ``function`` on [-c, c]; the same every time.

    Raises :class:`InputError` for a function that is not finite there."""
    t = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    with torch.no_grad():
        y = function(torch.from_numpy(c * t)).numpy()
        fine = np.linspace(-1, 1, 4001)
        truth = function(torch.from_numpy(c * fine)).numpy()
    if not (np.isfinite(y).all() and np.isfinite(truth).all()):
        raise InputError(f"Expected an activation function that is finite from {-c:g} to {c:g}; lower method.range.")
    return _fit(t.tobytes(), y.tobytes(), fine.tobytes(), truth.tobytes(), m, n, version)


@lru_cache(maxsize=64)
def _fit(t_: bytes, y_: bytes, fine_: bytes, truth_: bytes, m: int, n: int, version: Version) -> Fit:
    """By the values, so that each layer's equal activation is fitted once."""
    t, y, fine, truth = (np.frombuffer(part) for part in (t_, y_, fine_, truth_))
    P, Q = t[:, None] ** np.arange(m + 1), np.abs(t)[:, None] ** np.arange(1, n + 1)
    w, q = np.ones_like(t), np.ones_like(t)
    lower = np.r_[np.full(m + 1, -np.inf), np.zeros(n)]
    best: Found = (np.inf, np.zeros(m + 1), np.zeros(n))
    for _ in range(_ROUNDS):
        scale = np.sqrt(w) / q
        found = lsq_linear(
            np.concatenate([P, -y[:, None] * Q], axis=1) * scale[:, None], y * scale, bounds=(lower, np.inf), tol=1e-14
        ).x
        a, b = found[: m + 1], found[m + 1 :]
        error = np.abs(P @ a / _denominator(t, b, version) - y)
        best = min(best, (float(error.max()), a, b), key=lambda candidate: candidate[0])
        q = 1 + Q @ b
        w = w * (error / error.mean() + 1e-3)
        w = w / w.mean()
    _, a, b = best if version == "safe" else _polished(best, t, y, P)
    made = (fine[:, None] ** np.arange(m + 1)) @ a / _denominator(fine, b, version)
    return Fit(tuple(a.tolist()), tuple(b.tolist()), float(np.abs(made - truth).max()))


def _polished(start: Found, t: Numbers, y: Numbers, P: Numbers) -> Found:
    """Coefficients of the smooth version near those of the safe one, whose denominator it only resembles."""
    t, y, P = t[::5], y[::5], P[::5]
    m, w, best = P.shape[1], np.ones_like(t), (np.inf, *start[1:])

    def errors(scale: Numbers | float, theta: Numbers) -> Numbers:
        made: Numbers = scale * (P @ theta[:m] / _denominator(t, theta[m:], "smooth") - y)
        return made

    theta = np.concatenate([start[1], np.maximum(start[2], 0.1)])  # at 0 a smooth |b t^k| has no slope
    for _ in range(_ROUNDS // 6):
        theta = least_squares(partial(errors, np.sqrt(w)), theta, method="lm", max_nfev=200).x
        error = np.abs(errors(1.0, theta))
        best = min(best, (float(error.max()), theta[:m], theta[m:]), key=lambda candidate: candidate[0])
        w = w * (error / error.mean() + 1e-3)
        w = w / w.mean()
    return best


def _denominator(t: Numbers, b: Numbers, version: Version) -> Numbers:
    u = b * t[:, None] ** np.arange(1, len(b) + 1)
    size = np.abs(u) if version == "safe" else np.sqrt(u**2 + _SOFT**2) - _SOFT
    total: Numbers = 1 + size.sum(axis=1)
    return total


def rational(t: Tensor, a: Tensor, b: Tensor, version: Version) -> Tensor:
    """R of ``t`` [B, ...] with coefficients of its own for each example, a [B, m+1] and b [B, n]: [B, ...].

    Computed in float32 or wider. What is kept for the backward pass is ``t`` alone, and the coefficients' gradients are
    summed over an example's places as they arise, so that no tensor [B, ..., m+n] ever exists."""
    out: Tensor = _Rational.apply(t, a, b, version == "smooth")  # type: ignore[no-untyped-call]
    return out


class _Rational(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, a: Tensor, b: Tensor, smooth: bool) -> Tensor:
        ctx.save_for_backward(t, a, b)
        ctx.smooth = smooth
        wide = _wide(t)
        P, Q, _, _ = _parts(wide, a.to(wide.dtype), b.to(wide.dtype), smooth)
        return (P / Q).to(t.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        t, a, b = ctx.saved_tensors
        x, smooth = _wide(t), ctx.smooth
        wa, wb = a.to(x.dtype), b.to(x.dtype)
        P, Q, dP, dQ = _parts(x, wa, wb, smooth)
        over = g.to(x.dtype) / Q
        along = over * (dP - P / Q * dQ) if ctx.needs_input_grad[0] else None
        falling = over * (P / Q)
        ga, gb = torch.empty_like(wa), torch.empty_like(wb)
        power = torch.ones_like(x)
        for j in range(max(wa.shape[1], wb.shape[1] + 1)):
            if j < wa.shape[1]:
                ga[:, j] = (over * power).flatten(1).sum(dim=1)
            if 0 < j <= wb.shape[1]:
                u = _of(wb, j - 1, x) * power
                slope = u / (u * u + _SOFT**2).sqrt() if smooth else u.sign()
                gb[:, j - 1] = -(falling * slope * power).flatten(1).sum(dim=1)
            power = power * x
        return (None if along is None else along.to(t.dtype)), ga.to(a.dtype), gb.to(b.dtype), None


def _parts(t: Tensor, a: Tensor, b: Tensor, smooth: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P, Q and their derivatives by t, [B, ...] each."""
    P, dP = _of(a, -1, t).expand_as(t), torch.zeros_like(t)
    for j in range(a.shape[1] - 2, -1, -1):  # Horner
        dP = dP * t + P
        P = P * t + _of(a, j, t)
    Q, dQ, power = torch.ones_like(t), torch.zeros_like(t), torch.ones_like(t)
    for k in range(1, b.shape[1] + 1):
        beta = _of(b, k - 1, t)
        below, power = k * beta * power, power * t
        u = beta * power
        root = (u * u + _SOFT**2).sqrt() if smooth else u.abs()
        Q = Q + root - (_SOFT if smooth else 0.0)
        dQ = dQ + below * (u / root if smooth else u.sign())
    return P, Q, dP, dQ


def _of(coefficients: Tensor, j: int, like: Tensor) -> Tensor:
    """Coefficient ``j`` of each example, [B, 1, ..., 1]."""
    return coefficients[:, j].view(-1, *(1,) * (like.dim() - 1))


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()
