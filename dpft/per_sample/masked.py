"""A parameter that is some entries of a matrix, in a row: those that a pattern of zeros leaves.

    W = 0 everywhere but under ``mask``, where W holds ``values`` [K], row by row

The gradient of ``values`` is that of W under the mask and nothing else. So noise goes to K numbers and not to R x C,
and the norm that clips is the norm of what is released. A ghost norm knows of no mask: it would be that of the whole
gradient of W, an upper bound that clips too much. Here each example's gradient is laid out, masked and measured, a few
examples at a time, and let go; the sum is taken by book-keeping over all tokens and masked at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dpft.per_sample.capture import owner
from dpft.per_sample.forms import Dense, Form, Outer, rounded_up, total
from dpft.per_sample.precision import CHAIN, wide
from dpft.per_sample.shared import PullBack, name_for, shared

_AT_ONCE = 2**24  # numbers of R x C gradients that are laid out together


@dataclass(frozen=True)
class Masked(Form):
    """Gradients [B, K] of the entries of a matrix [R, C] under ``mask``, of which it has K; kept as the factors
    ``whole`` of the matrix's own gradients."""

    whole: Outer
    mask: Tensor

    @property
    def batch(self) -> int:
        return self.whole.batch

    @property
    def numel(self) -> int:
        return self.whole.numel

    def sq_norm(self) -> Tensor:
        pieces = [piece.mul_(self.mask).flatten(1) for piece in self._laid_out()]
        norms = [torch.linalg.vector_norm(piece, dim=1).double() for piece in pieces]
        return rounded_up(torch.cat(norms).square(), self.whole.span())

    def summed(self, c: Tensor) -> Dense:
        return Dense(self.whole.weighted_sum(c).reshape(self.mask.shape)[self.mask].unsqueeze(0))

    def dense(self) -> Tensor:
        kept = [piece[:, self.mask] for piece in self._laid_out()]
        return torch.cat(kept).to(wide(self.whole.left).dtype)

    def keep(self, mask: Tensor) -> Masked:
        return Masked(self.whole.keep(mask), self.mask)

    def part(self, rows: slice) -> Masked:
        return Masked(self.whole.part(rows), self.mask)

    def joined(self, others: Sequence[Form]) -> Form:
        """The masks of one parameter's uses are the same; its factors are added, with anything else as numbers."""
        factors = [f.whole for f in others if isinstance(f, Masked)]
        if len(factors) == len(others):
            return under(self.mask, total([self.whole, *factors]))
        return Dense(reduce(torch.add, [f.dense() for f in (self, *others)]))

    def _laid_out(self) -> Iterator[Tensor]:
        """[b, R, C] of the examples in turn; always at least one piece."""
        chunk = max(1, _AT_ONCE // max(1, self.mask.numel()))
        for start in range(0, max(1, self.batch), chunk):
            part = self.whole.part(slice(start, start + chunk))
            yield _product(wide(part.left), wide(part.right)).view(part.batch, *self.mask.shape)


def _product(left: Tensor, right: Tensor) -> Tensor:  # [b,T,R], [b,T,C] -> [b,R,C], float32 or wider
    """``left^T right``; long sums go on in float64, as in ``inner_products``."""
    T = left.shape[1]
    if T <= CHAIN:
        return left.mT @ right
    out = left.new_zeros(left.shape[0], left.shape[2], right.shape[2], dtype=torch.float64)
    for start in range(0, T, CHAIN):
        tokens = slice(start, start + CHAIN)
        out += left[:, tokens].mT @ right[:, tokens]
    return out


def under(mask: Tensor, form: Form) -> Form:
    """The gradients of the entries under ``mask``, from those of the matrix; as numbers where they are fewer."""
    if not isinstance(form, Outer):
        return Dense(form.dense().reshape(form.batch, *mask.shape)[:, mask])
    lean = Masked(form, mask)
    return Dense(lean.dense()) if form.batch * int(mask.sum()) <= form.numel else lean


def scattered(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` [K] as the matrix [R, C] that holds them, row by row, under ``mask`` and zeros elsewhere.

    In a capture the matrix is a tensor that all examples share, and what it collects comes home as :class:`Masked`."""
    found = owner(values)
    with torch._C.DisableTorchFunctionSubclass():
        made = values.new_zeros(mask.shape).masked_scatter(mask, values)
        if found is None or not torch.is_grad_enabled():
            return made
        grads, name = found
        reach: dict[str, Any] = grads.parameters(values)
        return grads.share(shared(made, name_for("scattered", [name], reach), reach, _pull_back(name, mask)))


def _pull_back(name: str, mask: Tensor) -> PullBack:
    return lambda form: {name: under(mask, form)}
