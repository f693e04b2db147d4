"""From per-example gradients to a sum that no single example moves by more than the clip."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpft.per_sample import Form
from dpft.per_sample.precision import full_precision


def clip_factors(sq_norm: Tensor, bound: float) -> Tensor:  # [B] -> [B]
    """Scale that brings each example's gradient within ``bound``.

    Guarantee: factor * norm <= bound, up to one rounding of the dtype.
    Edge cases: norm 0 -> 1; norm inf or nan -> 0.
    Reference: Abadi et al. 2016, Algorithm 1."""
    scale = (bound / sq_norm.sqrt()).clamp(max=1.0)
    return torch.where(torch.isfinite(sq_norm), scale, torch.zeros_like(scale))


@full_precision()
def total_sq_norm(forms: Mapping[str, Form]) -> Tensor:
    """Squared norm of each example's gradient over *all* parameters, [B] float64: one flat norm."""
    return torch.stack([form.sq_norm() for form in forms.values()]).sum(dim=0)


@torch.no_grad()
@full_precision()
def clipped_sum(forms: Mapping[str, Form], bound: float) -> tuple[dict[str, Tensor], Tensor]:
    """``sum_b G_b min(1, bound/|G_b|)`` for each parameter, and the squared norms [B] (private).

    An example with any non-finite coordinate counts as zero, in every parameter, before the sum."""
    sq = total_sq_norm(forms)
    factors = clip_factors(sq, bound)
    finite = torch.isfinite(sq)
    if not bool(finite.all()):
        forms = {name: form.keep(finite) for name, form in forms.items()}
    return {name: form.weighted_sum(factors) for name, form in forms.items()}, sq
