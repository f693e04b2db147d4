"""From per-example gradients to a sum that no single example moves by more than the clip."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from dpft.config.privacy_section import Clipping
from dpft.per_sample import Dense, Form, Rows
from dpft.per_sample.precision import full_precision, wide

K = TypeVar("K", bound=Hashable)  # whose gradient a form is: a parameter's name, or several names

GAMMA = 0.01
"""AUTO-S's stability constant, in the gradient's own unit: norms far above it all come to about the bound."""


def clip_factors(sq_norm: Tensor, bound: float, clipping: Clipping = "flat") -> Tensor:  # [B] -> [B]
    """Scale that brings each example's gradient within ``bound``: min(1, bound/norm), or bound/(norm + GAMMA).

    Guarantee: factor * norm <= bound, up to one rounding of the dtype, for either kind; so the sum's sensitivity is
    ``bound`` for both. AUTO-S never reaches it, and stretches what is shorter than the bound.
    Edge cases: norm 0 -> 1, with auto-s bound/GAMMA; norm inf or nan -> 0.
    References: Abadi et al. 2016, Algorithm 1; Bu et al. 2023, "Automatic Clipping" (AUTO-S)."""
    norm = sq_norm.sqrt()
    scale = bound / (norm + GAMMA) if clipping == "auto-s" else (bound / norm).clamp(max=1.0)
    return torch.where(torch.isfinite(sq_norm), scale, torch.zeros_like(scale))


@full_precision()
def total_sq_norm(forms: Mapping[Any, Form]) -> Tensor:
    """Squared norm of each example's gradient over *all* parameters, [B] float64: one flat norm."""
    return torch.stack([form.sq_norm() for form in forms.values()]).sum(dim=0)


@torch.no_grad()
@full_precision()
def scaled(forms: Mapping[str, Form], scale: Mapping[str, Tensor]) -> dict[str, Form]:
    """Each example's gradient times ``scale`` [*shape], coordinate by coordinate.

    A factored form has no scaled one, so all become dense: for the small tensors of a method, not for a model's own."""
    return {name: Dense(wide(form.dense()) * scale[name]) for name, form in forms.items()}


@torch.no_grad()
@full_precision()
def clipped_sum(
    forms: dict[K, Form], bound: float, clipping: Clipping = "flat"
) -> tuple[dict[K, Dense | Rows], Tensor]:
    """``sum_b G_b f(|G_b|)`` for each form, as the gradient of one example, f being :func:`clip_factors`; and the
    squared norms [B] (private).

    An example with any non-finite coordinate counts as zero, in every parameter, before the sum. ``forms`` is emptied:
    the memory of each goes as its sum comes."""
    sq = total_sq_norm(forms)
    factors = clip_factors(sq, bound, clipping)
    finite = torch.isfinite(sq)
    if not bool(finite.all()):
        for name in forms:
            forms[name] = forms[name].keep(finite)
    return {name: forms.pop(name).summed(factors) for name in list(forms)}, sq
