"""Scores of weights before any training, and the mask that keeps the highest of all matrices together.

    random      drawn from a generator
    magnitude   |w|
    SynFlow     w dR/dw of R = 1^T |W_u| |W_d| 1, a bottleneck of an all-ones input, in rounds (Tanaka et al. 2020,
                arXiv 2006.05467, Algorithm 1); looks at no record
    SNIP        |g w|, g the gradient of the mean loss (Lee et al. 2019, arXiv 1810.02340)
    GraSP       w (H g), H its Hessian: where it is lowest, taking the weight out leaves the most gradient (Wang et al.
                2020, arXiv 2002.07376, which removes the highest -w (H g))

A mask is a list of true and false, one tensor a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpft.errors import InputError

Pair = tuple[Tensor, Tensor]
"""The two matrices of a bottleneck: down [m, d] and up [d, m]."""


def keep_highest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """True for the ``count`` highest scores of all matrices together, exactly so many; of equal ones the first stay.

    The highest of each matrix stays in any case, since nothing could train in an empty one; where no matrix is left
    empty anyway, that changes nothing. Raises :class:`InputError` for scores that are not finite, and for fewer places
    than matrices."""
    flat = torch.cat([s.detach().flatten().double().cpu() for s in scores])
    if not bool(flat.isfinite().all()):
        raise InputError("The scores that a mask is made from are not finite; check the loss, and the model's weights.")
    if not len(scores) <= count <= len(flat):
        raise InputError(
            f"Expected method.density to keep at least one weight of each of the {len(scores)} matrices, found "
            f"{count} of {len(flat)} in all; raise it."
        )
    sizes = [s.numel() for s in scores]
    firsts = torch.tensor([int(part.argmax()) for part in torch.split(flat, sizes)])
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    flat[firsts + starts] = torch.inf
    limit = flat.kthvalue(len(flat) - count + 1).values
    kept = flat > limit
    equal = (flat == limit).nonzero().flatten()
    kept[equal[: count - int(kept.sum())]] = True
    return [part.view(s.shape).to(s.device) for part, s in zip(torch.split(kept, sizes), scores, strict=True)]


def random_scores(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [torch.rand(w.shape, generator=generator) for w in weights]


def magnitudes(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w.abs() for w in weights]


def snip_scores(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    return [(w.double() * g.double()).abs() for w, g in zip(weights, gradients, strict=True)]


def grasp_scores(weights: Sequence[Tensor], products: Sequence[Tensor]) -> list[Tensor]:
    """``products``: H g, laid out as the weights."""
    return [w.double() * p.double() for w, p in zip(weights, products, strict=True)]


def synflow_scores(pair: Pair) -> list[Tensor]:
    """|w| dR/d|w| of both matrices, in closed form: a weight of W_d counts by what leads on from its row, one of W_u
    by what leads to its column."""
    down, up = pair[0].abs().double(), pair[1].abs().double()
    return [down * up.sum(dim=0)[:, None], up * down.sum(dim=1)]


def synflow_mask(pairs: Sequence[Pair], count: int, rounds: int = 100) -> list[Tensor]:
    """Keep ``count`` weights of all bottlenecks: the share that stays falls to the power of the round, and each round
    scores what the last one left, so that no layer is cut off early. Ordered down, up, down, up."""
    weights = [w for pair in pairs for w in pair]
    total = sum(w.numel() for w in weights)
    masks = [torch.ones(w.shape, dtype=torch.bool, device=w.device) for w in weights]
    for turn in range(1, rounds + 1):
        left = [w * m for w, m in zip(weights, masks, strict=True)]
        scores = [s for pair in zip(left[::2], left[1::2], strict=True) for s in synflow_scores(pair)]
        # What is out stays out: its score is zero, which another's may be too.
        scores = [s.where(m, -1.0) for s, m in zip(scores, masks, strict=True)]
        masks = keep_highest(scores, max(count, round(total * (count / total) ** (turn / rounds))))
    return masks
