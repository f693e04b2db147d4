"""Rational functions of one number, and their fit to another function (Molina et al. 2020, arXiv 1907.06732).

    R(x) = P(t) / Q(t),    t = x / c,    P = sum_{j=0..m} a_j t^j,    Q = 1 + sum_{k=1..n} |b_k t^k|

Q is at least 1, so there are no poles. "safe" is the published version A; "smooth" has sqrt(u^2 + e^2) - e in place of
|u|, e = 0.003, which has derivatives everywhere, those by b_k too. Coefficients are those of powers of t, which is in
[-1, 1] over the range of the fit: raw powers of x differ by c^5.

The fit looks at no data: least squares on Chebyshev nodes of [-c, c], linearised by the last Q (Sanathanan and Koerner
1963) and reweighted by the error (Lawson 1961), which brings the largest error down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
_BLOCK, _BLOCK_ON_DEVICE = 2**16, 2**24  # numbers worked on at a time: a thread's, and an accelerator's


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
        flat, wa, wb = _rows(t), _wide(a, t), _wide(b, t)
        out = torch.empty_like(flat)
        for rows, columns in _blocks(flat):
            P, _, Q, _ = _parts(_wide(flat[rows, columns], t), wa[rows], wb[rows], smooth)
            out[rows, columns] = P.div_(Q)
        return out.view(t.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        t, a, b = ctx.saved_tensors
        flat, gout, wa, wb = _rows(t), _rows(g), _wide(a, t), _wide(b, t)
        along, ga, gb = torch.empty_like(flat), torch.zeros_like(wa), torch.zeros_like(wb)
        for rows, columns in _blocks(flat):
            x = _wide(flat[rows, columns], t)
            P, dP, Q, dQ = _parts(x, wa[rows], wb[rows], ctx.smooth)
            over = gout[rows, columns] / Q
            R = P.div_(Q)
            along[rows, columns] = dP.sub_(dQ.mul_(R)).mul_(over)
            falling = R.mul_(over)
            for j, moment in enumerate(_moments(over, x, wa.shape[1])):
                ga[rows, j] += moment
            for k, moment in enumerate(_slopes(falling, x, wb[rows], ctx.smooth)):
                gb[rows, k] -= moment
        return along.view(t.shape), ga.to(a.dtype), gb.to(b.dtype), None


def _rows(t: Tensor) -> Tensor:
    return t.reshape(len(t), math.prod(t.shape[1:]))


def _blocks(flat: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of [B, N], a piece at a time: small enough to stay in a core's cache through all operations."""
    B, N = flat.shape
    most = _BLOCK * torch.get_num_threads() if flat.device.type == "cpu" else _BLOCK_ON_DEVICE
    deep, wide = max(1, most // max(N, 1)), max(1, min(N, most))
    for row in range(0, B, deep):
        for column in range(0, N, wide):
            yield slice(row, row + deep), slice(column, column + wide)


def _parts(t: Tensor, a: Tensor, b: Tensor, smooth: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P and its derivative by t, Q and its derivative, [r, c] each."""
    P, dP = _polynomial(a, t)
    if not smooth:  # |b_k t^k| is |b_k| |t|^k
        Q, dQ = _polynomial(torch.cat([torch.ones_like(b[:, :1]), b.abs()], 1), t.abs())
        return P, dP, Q, dQ.mul_(t.sign())
    Q, dQ, power = torch.ones_like(t), torch.zeros_like(t), torch.ones_like(t)
    for k in range(1, b.shape[1] + 1):
        beta = b[:, k - 1, None]
        below, power = k * beta * power, power * t
        u = beta * power
        root = (u * u + _SOFT**2).sqrt()
        Q += root - _SOFT
        dQ += below * (u / root)
    return P, dP, Q, dQ


def _polynomial(c: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j c_j t^j and its derivative, by Horner's rule. c [r, n], t [r, c]."""
    value, slope = c[:, -1, None].expand_as(t).clone(), torch.zeros_like(t)
    for j in range(c.shape[1] - 2, -1, -1):
        slope = torch.addcmul(value, slope, t)
        value = torch.addcmul(c[:, j, None], value, t)
    return value, slope


def _moments(f: Tensor, t: Tensor, n: int) -> Iterator[Tensor]:
    """Of each row of ``f``, the sums of f t^j for j < n, [r] each."""
    for j in range(n):
        f = f * t if j else f
        yield f.sum(1)


def _slopes(f: Tensor, t: Tensor, b: Tensor, smooth: bool) -> Iterator[Tensor]:
    """The sums of f dQ/db_k for k from 1, [r] each."""
    if not smooth:
        for moment, sign in zip(_moments(f * t.abs(), t.abs(), b.shape[1]), b.sign().T, strict=True):
            yield moment * sign
        return
    power = torch.ones_like(t)
    for k in range(b.shape[1]):
        power = power * t
        u = b[:, k, None] * power
        yield (f * power * u / (u * u + _SOFT**2).sqrt()).sum(1)


def _wide(x: Tensor, like: Tensor) -> Tensor:
    return x.to(torch.promote_types(like.dtype, torch.float32))
