"""Per-example gradients of one parameter, kept in whichever shape is smallest.

Shape legend
    B = examples, T = uses per example (tokens), R x C = the parameter's shape when it is a matrix,
    V x D = an embedding table, *shape = any parameter's shape

A form answers three questions about the same expression, so they can't disagree: the squared norm
of each example's gradient, a weighted sum over examples, and the dense gradients. Forms of several
uses of one parameter are added *before* a norm is taken (tied weights, a layer called twice).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dpft.per_sample.precision import CHAIN, inner_products, wide

_PIECE = 2**20  # numbers that are added at once


class Form(ABC):
    """Gradients of ``B`` examples with respect to one parameter."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Number of examples B."""

    @property
    @abstractmethod
    def numel(self) -> int:
        """Numbers held in memory."""

    @abstractmethod
    def sq_norm(self) -> Tensor:
        """Squared Euclidean norm of each example's gradient, [B], float64."""

    @abstractmethod
    def summed(self, c: Tensor) -> Dense | Rows:
        """``sum_b c_b G_b`` as the gradient of one example, float32 or wider. ``c`` is [B]."""

    def weighted_sum(self, c: Tensor) -> Tensor:
        """:meth:`summed`, of the parameter's shape."""
        return self.summed(c).dense()[0]

    @abstractmethod
    def dense(self) -> Tensor:
        """[B, *shape]; may be large."""

    @abstractmethod
    def keep(self, mask: Tensor) -> Form:
        """The same form with every example outside ``mask`` (bool [B]) replaced by exact zeros.

        Needed because 0 * inf is nan: a weight of zero does not remove a non-finite example."""

    @abstractmethod
    def part(self, rows: slice) -> Form:
        """The same form of these examples alone."""

    def joined(self, others: Sequence[Form]) -> Form | None:
        """The sum with ``others`` in a kind of form of its own, where this one has such a sum."""
        return None

    def __add__(self, other: Form) -> Form:
        return total([self, other])


def rounded_up(sq_norm: Tensor, span: Tensor) -> Tensor:  # [B], [B] -> [B]
    """A squared norm made of terms that can cancel, moved up by what rounding may have taken from it.

    ``span`` is the sum of the terms' norms, in the type that the products were taken in. Each entry of the
    Gram matrices is off by at most CHAIN * eps/2 of the norms it is made of, their product by twice that, and
    ``span`` itself by a few eps, or by as much as their diagonals, which is of second order; the sums are float64.
    A norm that came out too small would let its example exceed the clip, one a little too large only clips it a
    little more."""
    eps = torch.finfo(span.dtype).eps
    return sq_norm.clamp_min(0.0) + (CHAIN + 4) * eps * span.double().square()


def _blank(x: Tensor, mask: Tensor) -> Tensor:
    shape = (-1,) + (1,) * (x.dim() - 1)
    return torch.where(mask.view(shape), x, torch.zeros((), dtype=x.dtype, device=x.device))


@dataclass(frozen=True)
class Dense(Form):
    """Materialised gradients ``g``: [B, *shape]."""

    g: Tensor

    @property
    def batch(self) -> int:
        return self.g.shape[0]

    @property
    def numel(self) -> int:
        return self.g.numel()

    def flat(self) -> Tensor:
        """[B, coordinates], float32 or wider."""
        return wide(self.g).reshape(self.batch, _size(self.g))

    def sq_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.flat(), dim=1)
        return norm.double().square()  # squares of float32 over- and underflow

    def summed(self, c: Tensor) -> Dense:
        flat = self.flat()
        return Dense((c.to(flat.dtype) @ flat).view(1, *self.g.shape[1:]))

    def add_to(self, total: Tensor) -> None:
        """Add the gradient of the one example to a contiguous tensor of the parameter's shape.

        In pieces: adding float32 to float64 makes a copy of the former first, in float64."""
        if self.numel <= _PIECE:
            total.add_(self.g[0])
            return
        pieces = torch.split(self.g.reshape(-1), _PIECE)
        for into, piece in zip(torch.split(total.view(-1), _PIECE), pieces, strict=True):
            into.add_(piece)

    def dense(self) -> Tensor:
        return self.g

    def keep(self, mask: Tensor) -> Dense:
        return Dense(_blank(self.g, mask))

    def part(self, rows: slice) -> Dense:
        return Dense(self.g[rows])


def _diagonal(grams: Tensor) -> Tensor:  # [B,T,T] -> [B,T]
    return grams.diagonal(dim1=1, dim2=2)


def _size(g: Tensor) -> int:
    """Coordinates of one example (well defined for an empty batch, where -1 is not)."""
    return int(torch.Size(g.shape[1:]).numel())


@dataclass(frozen=True)
class Outer(Form):
    """Factored gradients ``G_b = sum_t left[b,t] right[b,t]^T``; left [B,T,R], right [B,T,C].

    ``shape`` is the parameter's where that is not R x C itself (a convolution's weight). The norm is taken
    without building G (ghost norm: two T x T Gram matrices), the weighted sum is one matrix product over all
    tokens (book-keeping). Reference: Bu et al. 2022, "book-keeping"."""

    left: Tensor
    right: Tensor
    shape: torch.Size | None = None

    @property
    def batch(self) -> int:
        return self.left.shape[0]

    @property
    def numel(self) -> int:
        return self.left.numel() + self.right.numel()

    @property
    def dense_numel(self) -> int:
        return self.batch * self.left.shape[2] * self.right.shape[2]

    def sq_norm(self) -> Tensor:
        lefts, rights = inner_products(self.left, self.left), inner_products(self.right, self.right)
        products = torch.promote_types(self.left.dtype, torch.float32)
        span = _diagonal(lefts).mul(_diagonal(rights)).sqrt().sum(dim=1).to(products)  # as in span()
        return rounded_up(lefts.mul_(rights).sum(dim=(1, 2)), span)

    def span(self) -> Tensor:
        """Sum over t of the norms of the terms, [B]: the norm if nothing cancelled."""
        left, right = wide(self.left), wide(self.right)
        size: Tensor = (left.norm(dim=2) * right.norm(dim=2)).sum(dim=1)
        return size

    def summed(self, c: Tensor) -> Dense:
        left, right = wide(self.left), wide(self.right)
        factors = c.to(left.dtype).view(-1, 1, 1)
        if left.shape[2] <= right.shape[2]:  # the narrower side is the cheaper to scale
            left = left * factors
        else:
            right = right * factors
        product = left.flatten(0, 1).T @ right.flatten(0, 1)
        return Dense(product.view(1, *(product.shape if self.shape is None else self.shape)))

    def dense(self) -> Tensor:
        product = self.left.mT @ self.right
        return product if self.shape is None else product.view(self.batch, *self.shape)

    def keep(self, mask: Tensor) -> Outer:
        return Outer(_blank(self.left, mask), _blank(self.right, mask), self.shape)

    def part(self, rows: slice) -> Outer:
        return Outer(self.left[rows], self.right[rows], self.shape)

    def smaller(self) -> Dense | Outer:
        """This form, or its dense one where that takes no more memory."""
        return Dense(self.dense()) if self.dense_numel <= self.numel else self


@dataclass(frozen=True)
class Rows(Form):
    """Gradients of a table [V, D] that touch a few rows: row ``index[b,t]`` receives ``g[b,t]``.

    index [B,T] int64, g [B,T,D]. The same row may occur many times in one example."""

    index: Tensor
    g: Tensor
    table_rows: int

    @property
    def batch(self) -> int:
        return self.g.shape[0]

    @property
    def numel(self) -> int:
        return self.g.numel() + self.index.numel()

    @property
    def dense_numel(self) -> int:
        return self.batch * self.table_rows * self.g.shape[2]

    def sq_norm(self) -> Tensor:
        """Uses of one row are summed as vectors."""
        g = wide(self.g)
        same = self.index.unsqueeze(2) == self.index.unsqueeze(1)
        return rounded_up(inner_products(g, g).mul_(same).sum(dim=(1, 2)), self.span())

    def span(self) -> Tensor:
        """Sum over t of the norms of the terms, [B]: the norm if nothing cancelled."""
        size: Tensor = wide(self.g).norm(dim=2).sum(dim=1)
        return size

    def summed(self, c: Tensor) -> Rows:
        """In float64 like the sum of a step, so that adding the rows to it takes no further memory."""
        scaled = (self.g * c.double().view(-1, 1, 1)).flatten(0, 1)
        return Rows(self.index.reshape(1, -1), scaled.unsqueeze(0), self.table_rows)

    def add_to(self, total: Tensor) -> None:
        """Add the gradient of the one example to a table [V, D]; the other rows are not touched."""
        total.index_add_(0, self.index[0], self.g[0].to(total.dtype))

    def dense(self) -> Tensor:
        B, T, D = self.g.shape
        out = self.g.new_zeros(B, self.table_rows, D)
        return out.scatter_add_(1, self.index.unsqueeze(2).expand(B, T, D), self.g)

    def keep(self, mask: Tensor) -> Rows:
        return Rows(self.index, _blank(self.g, mask), self.table_rows)

    def part(self, rows: slice) -> Rows:
        return Rows(self.index[rows], self.g[rows], self.table_rows)

    def smaller(self) -> Dense | Rows:
        """This form, or its dense one where that takes no more memory."""
        return Dense(self.dense()) if self.dense_numel <= self.numel else self


@dataclass(frozen=True)
class RowsAndOuter(Form):
    """A table used both by look-up and as a matrix: the tied embedding and output head of language models.

    ``|r + o|^2 = |r|^2 + |o|^2 + 2 <r, o>``, none of which needs the B x V x D dense gradient."""

    rows: Rows
    outer: Outer

    @property
    def batch(self) -> int:
        return self.rows.batch

    @property
    def numel(self) -> int:
        return self.rows.numel + self.outer.numel

    def sq_norm(self) -> Tensor:
        left, right = wide(self.outer.left), wide(self.outer.right)  # [B,S,V], [B,S,D]
        g = wide(self.rows.g)  # [B,T,D]
        B, S = left.shape[:2]
        index = self.rows.index.unsqueeze(1).expand(B, S, g.shape[1])
        cross = inner_products(right, g).mul_(left.gather(2, index)).sum(dim=(1, 2))
        squares = self.rows.sq_norm() + self.outer.sq_norm()
        return rounded_up(squares + 2 * cross, self.rows.span() + self.outer.span())

    def summed(self, c: Tensor) -> Dense:
        made = self.outer.summed(c)
        self.rows.summed(c).add_to(made.g[0])
        return made

    def dense(self) -> Tensor:
        return self.rows.dense() + self.outer.dense()

    def keep(self, mask: Tensor) -> RowsAndOuter:
        return RowsAndOuter(self.rows.keep(mask), self.outer.keep(mask))

    def part(self, rows: slice) -> RowsAndOuter:
        return RowsAndOuter(self.rows.part(rows), self.outer.part(rows))


def total(forms: Sequence[Form]) -> Form:
    """Sum of the gradients of several uses of one parameter; all forms have the same B and shape."""
    if len(forms) == 1:
        return forms[0]
    for i, form in enumerate(forms):
        if (own := form.joined([*forms[:i], *forms[i + 1 :]])) is not None:
            return own
    flat = [part for form in forms for part in _parts(form)]
    rows = [f for f in flat if isinstance(f, Rows)]
    outers = [f for f in flat if isinstance(f, Outer)]
    dense = [f.g for f in flat if isinstance(f, Dense)]
    row, outer = _join_rows(rows), _join_outers(outers)
    if not dense and (row is None or outer is None):
        one = row if row is not None else outer
        assert one is not None  # forms is not empty
        return one.smaller()
    if not dense and row is not None and outer is not None and row.numel + outer.numel < row.dense_numel:
        return RowsAndOuter(row, outer)
    dense += [f.dense() for f in (row, outer) if f is not None]
    return Dense(reduce(torch.add, dense))


def _parts(form: Form) -> tuple[Form, ...]:
    return (form.rows, form.outer) if isinstance(form, RowsAndOuter) else (form,)


def _join_rows(forms: list[Rows]) -> Rows | None:
    if not forms:
        return None
    index, g = torch.cat([f.index for f in forms], 1), torch.cat([f.g for f in forms], 1)
    return Rows(index, g, forms[0].table_rows)


def _join_outers(forms: list[Outer]) -> Outer | None:
    if not forms:
        return None
    return Outer(torch.cat([f.left for f in forms], 1), torch.cat([f.right for f in forms], 1), forms[0].shape)
