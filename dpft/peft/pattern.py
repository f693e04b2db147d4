"""A pattern of zeros in a pretrained model: finding it, training under it, keeping it when a method is folded in.

A backbone that was pruned on public text (Zafrir et al. 2021, arXiv 2111.05754; ``dpft sparsify`` makes one) has Linear
weights of which most entries are exactly zero. A method on top leaves them alone while they are frozen. Where such a
layer itself trains, it is locked:

    y = x W^T + b,    W = values under the mask (W0 != 0), zero elsewhere

What trains is the vector of the entries that are not zero. The zeros are no parameters: neither noise nor momentum nor
weight decay can revive them, and the count of what trains is that of what moves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dpft.errors import InputError
from dpft.peft.families import is_linear
from dpft.peft.inject import replace_module
from dpft.peft.method import Wrapper, innermost
from dpft.peft.pruned import packed, unpacked
from dpft.per_sample.masked import scattered

Pattern = Literal["lock", "ignore"]
SPARSE = 0.05
"""A weight has a pattern where at least this share of its entries is exactly zero, and not all of them. Weights that
nobody pruned have next to none; a layer that is zero throughout has not started yet."""


def check_pattern(pattern: str) -> None:
    """Raise :class:`InputError` for what is no pattern setting."""
    if pattern not in get_args(Pattern):
        raise InputError(f"Expected method.pattern={pattern!r} to be one of {', '.join(get_args(Pattern))}.")


def is_sparse(module: nn.Module) -> bool:
    """Whether ``module`` is a Linear (or GPT-2 Conv1D) whose weight has a pattern of zeros."""
    if not is_linear(module) or cast(Tensor, module.weight).is_meta:
        return False
    weight = cast(Tensor, module.weight)
    return SPARSE * weight.numel() <= int((weight == 0).sum()) < weight.numel()


def sparsity(weight: Tensor) -> float:
    """The share of entries that are exactly zero."""
    return float((weight == 0).double().mean())


class SparseLinear(Wrapper):
    """A Linear (or GPT-2 Conv1D) of which only the entries that are not zero train. [B, ..., I] -> [B, ..., O].

    The mask is kept, eight entries a byte, so that a stored adapter can tell another pattern from its own."""

    reads_weight = True
    bits: Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        weight = cast(Tensor, base.weight).detach()
        self.register_buffer("bits", packed(weight != 0))
        self.values = nn.Parameter(weight[weight != 0].clone())

    @property
    def mask(self) -> Tensor:
        return unpacked(self.bits, cast(Tensor, self.base_layer.weight).shape)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional_call(self.base_layer, {"weight": scattered(self.values, self.mask)}, (x,))
        return y

    def merged(self) -> nn.Module:
        cast(Tensor, self.base_layer.weight).data.masked_scatter_(self.mask, self.values.detach())
        return self.base_layer

    def fit_to(self, tensors: Mapping[str, Tensor]) -> None:
        """The stored values belong to the places of their own mask."""
        stored = tensors.get("bits")
        if stored is not None and not torch.equal(stored.to(self.bits), self.bits):
            raise InputError("The adapter does not fit this model: the base's weights have their zeros elsewhere.")


def locked(model: nn.Module, chosen: Sequence[nn.Parameter], pattern: Pattern) -> list[nn.Parameter]:
    """What trains in place of ``chosen``: of sparse layers the entries that are not zero, unless told to ``ignore``.

    Raises :class:`InputError`, before anything is changed, for a sparse weight that several layers share."""
    if pattern == "ignore":
        return list(chosen)
    ids = {id(p) for p in chosen}
    layers = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if is_linear(m)]
    sparse = {m: name for name, m in reversed(layers) if id(m.weight) in ids and is_sparse(m)}
    held = [id(p) for m in set(model.modules()) for p in m.parameters(recurse=False)]
    tied = next((name for m, name in sparse.items() if held.count(id(m.weight)) > 1), None)
    if tied is not None:
        raise InputError(
            f"{tied} has a pattern of zeros and shares its weight with another layer, so it can't be locked; untie "
            'them, or let the zeros train too with method.pattern = "ignore".'
        )
    made = {m: SparseLinear(m) for m in sparse}
    for name, module in layers:
        if module in made:
            replace_module(model, name, made[module])
    values = {id(module.weight): wrapper.values for module, wrapper in made.items()}
    return [values.get(id(p), p) for p in chosen]


@torch.no_grad()
def lost_by_merging(model: nn.Module) -> dict[str, float]:
    """The sparse layers whose zeros would be filled if their method were folded in, by name; ``model`` is not changed.

    The figure is the share of the folded weight, in Euclidean norm, that stands where the base has zeros: how far a
    merged layer that keeps its zeros is from the trained one. One layer is copied at a time."""
    found: dict[str, float] = {}
    for name, wrapper in _outermost(model):
        base = innermost(wrapper)
        if is_sparse(base):
            zeros = cast(Tensor, base.weight) == 0
            folded = cast(Tensor, _folded(copy.deepcopy(wrapper)).weight).double()
            lost = folded[zeros].norm()
            if lost > 0:
                found[name] = float(lost / folded.norm())
    return found


def _folded(wrapper: Wrapper) -> nn.Module:
    if isinstance(wrapper.base_layer, Wrapper):
        wrapper.base_layer = _folded(wrapper.base_layer)
    return wrapper.merged()


def _outermost(model: nn.Module) -> list[tuple[str, Wrapper]]:
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, Wrapper)]
    inner = {id(m.base_layer) for _, m in named}
    return [(name, m) for name, m in named if id(m) not in inner]
