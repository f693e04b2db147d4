"""For a function without a rule: every example gets a copy of the parameter, and one vectorised call does them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dpft.per_sample.batches import mapped
from dpft.per_sample.capture import expanded, is_tracked


def one_copy_each(func: Any, args: Any, kwargs: Any, examples: int, batched: Sequence[Tensor]) -> Any:
    """``func(*args, **kwargs)`` with each example's slice of the ``batched`` tensors beside its own copy of every
    tracked tensor. A batched tensor has ``examples`` times k rows, example by example; so has each tensor of the
    outcome.

    Autograd then sums each example's gradient onto its own copy. Raises where ``func`` can't be vectorised or
    mixes the examples."""
    leaves = list(_leaves((args, kwargs)))
    dims = [0 if is_tracked(t) or any(t is b for b in batched) else None for t in leaves]

    def own(t: Tensor) -> Tensor:
        if is_tracked(t):
            return expanded(t, examples, t.dim() + 1)
        return t.reshape(examples, t.shape[0] // max(1, examples), *t.shape[1:]) if any(t is b for b in batched) else t

    def one(*slices: Tensor) -> Any:
        a, k = _rebuilt((args, kwargs), iter(slices))
        return func(*a, **k)

    out = torch.vmap(one, in_dims=tuple(dims))(*(own(t) for t in leaves))
    return mapped(out, lambda t: t.flatten(0, 1))


def _leaves(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from _leaves(item)
    elif isinstance(nested, dict):
        yield from _leaves(tuple(nested.values()))


def _rebuilt(nested: Any, leaves: Iterator[Tensor]) -> Any:
    if isinstance(nested, Tensor):
        return next(leaves)
    if isinstance(nested, (tuple, list)):
        return type(nested)([_rebuilt(item, leaves) for item in nested])
    if isinstance(nested, dict):
        return {key: _rebuilt(value, leaves) for key, value in nested.items()}
    return nested
