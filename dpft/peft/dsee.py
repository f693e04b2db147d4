"""DSEE: a low-rank and a sparse residual beside frozen weights (Chen et al. 2021, arXiv 2111.00160).

    y = W x + s (B A x + S2 x)          s = alpha / rank, over S2 too, as in the paper's code

A starts as N(0, 0.02^2), B and S2 at zero, so the model starts unchanged. S2 has N entries that are not zero, at fixed
positions: those of the N largest entries of S in a split W = U V + S + rest of the pretrained weights (decompose.py),
or of W, or drawn. It is kept as three lists, ``values`` [N], which train, ``rows`` and ``cols``, and is never laid out
as a matrix: each token's N inputs are gathered, multiplied and added up by rows. Trained: A, B and ``values``.

Default places are query and value; where a projection holds query, key and value in one weight, its query and value
parts, each with N entries of its own. Per-example gradients: those of A and B by the rules of Linear; ``values`` is
expanded along the batch, d values_b[n] = s sum_t g[t, rows[n]] x[t, cols[n]], for which N numbers a token are kept. So
N may not pass the layer's narrower side: beyond that they would outweigh the layer's own activations.

With ``pruned`` masks over the blocks' frozen weights are kept with the adapter (S1 of the paper, W * S1 in place of W);
a second phase sets it, see prune.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.decompose import decompose, largest
from dpft.peft.families import Role, family_of
from dpft.peft.inject import ALL_LINEAR, linears, replace_module
from dpft.peft.lora import PARTS, LoRA, LoRALinear, linear_shape, places
from dpft.peft.method import Method
from dpft.peft.pruned import Pruned

Support = Literal["decompose", "magnitude", "random"]


@dataclass(frozen=True)
class DSEE(Method):
    """``rank`` and ``alpha`` of the low-rank part, ``nonzeros`` the entries of the sparse part of each layer (or part
    of one), ``targets`` as LoRA's, ``()`` for query and value; ``support`` says where the entries are."""

    name: ClassVar[str] = "dsee"
    what: ClassVar[str] = "low-rank pairs and a few single weights (Chen et al. 2021)"
    merges: ClassVar[bool] = True
    roles: ClassVar[tuple[Role, ...]] = ("query", "value")

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    nonzeros: int = 64
    support: Support = "decompose"
    pruned: bool = False

    def __post_init__(self) -> None:
        self._pairs()  # which checks rank and alpha
        if isinstance(self.nonzeros, bool) or not isinstance(self.nonzeros, int) or self.nonzeros < 1:
            raise InputError(f"Expected method.nonzeros={self.nonzeros} to be a whole number of at least 1.")
        if self.support not in get_args(Support):
            raise InputError(f"Expected method.support={self.support!r} to be one of {', '.join(get_args(Support))}.")

    def _pairs(self) -> LoRA:
        return LoRA(rank=self.rank, alpha=self.alpha, targets=self.targets)

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Wrap every target; A, B and the values of S2 train."""
        frozen = linears(model, (ALL_LINEAR,)) if self.pruned else []
        made = [
            (name, DSEELinear(name, module, self, self._pairs(), generator, parts))
            for name, module, parts in list(places(model, self.targets or _query_and_value(model)))
        ]
        for name, layer in made:
            replace_module(model, name, layer)
        adapted = dict(made)
        for name, module in frozen:
            if name in adapted:
                adapted[name].base_layer = Pruned(module)
            else:
                replace_module(model, name, Pruned(module))
        return [p for _, layer in made for p in layer.trained()]


def _query_and_value(model: nn.Module) -> tuple[str, ...]:
    family = family_of(model)
    return family.lora if family.fused == 1 else tuple(f"{name}:{part}" for name in family.lora for part in "qv")


class DSEELinear(LoRALinear):
    """A Linear (or GPT-2 Conv1D) with a low-rank and a sparse branch. [B, ..., I] -> [B, ..., O].

    With ``parts``, the entries [N each] of the parts stand one after the other."""

    rows: Tensor
    cols: Tensor

    def __init__(
        self, name: str, base: nn.Module, config: DSEE, pairs: LoRA, generator: torch.Generator, parts: tuple[int, ...]
    ) -> None:
        super().__init__(base, pairs, generator, parts)
        weight = cast(Tensor, base.weight)
        self.inputs, self.outputs = linear_shape(base)
        narrow = min(self.inputs, self.outputs // (len(PARTS) if parts else 1))
        if config.nonzeros > narrow:
            raise InputError(
                f"Expected method.nonzeros={config.nonzeros} to be at most {narrow}, the narrower side of {name}: each "
                "example's gradient keeps so many numbers a token. Take fewer, or a rank instead."
            )
        rows, cols = _positions(base, config, generator, parts)
        self.register_buffer("rows", rows)
        self.register_buffer("cols", cols)
        self.values = nn.Parameter(torch.zeros(len(rows), dtype=weight.dtype, device=weight.device))
        if not weight.is_meta:
            drawn = torch.empty(self.lora_A.weight.shape).normal_(0, 0.02, generator=generator)
            self.lora_A.weight.data.copy_(drawn)

    def trained(self) -> list[nn.Parameter]:
        return [*self.lora_A.parameters(), *self.lora_B.parameters(), self.values]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        added = self._branch(self.lora_A(x), y) + self._sparse(x).to(y.dtype)
        return y + (added if self.scaling == 1 else added * self.scaling)

    def _sparse(self, x: Tensor) -> Tensor:
        """S2 x [B, ..., O]."""
        terms = x.index_select(-1, self.cols) * self.values
        return x.new_zeros(*x.shape[:-1], self.outputs, dtype=terms.dtype).index_add(-1, self.rows, terms)

    def change(self) -> Tensor:
        """B A + S2 [O, I]."""
        return super().change().index_put((self.rows, self.cols), self.values.detach(), accumulate=True)

    def fit_to(self, tensors: Mapping[str, Tensor]) -> None:
        """Stored positions must be places of this weight; torch would meet others only in the forward pass."""
        for name, size in (("rows", self.outputs), ("cols", self.inputs)):
            found = tensors.get(name)
            if found is not None and found.numel() and not 0 <= int(found.min()) <= int(found.max()) < size:
                raise InputError(f"The adapter does not fit this model: {name} names a place outside of a layer.")


def _positions(
    base: nn.Module, config: DSEE, generator: torch.Generator, parts: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Row and column of every entry of S2, each [N] or, with parts, [len(parts) N]."""
    weight, (inputs, outputs) = cast(Tensor, base.weight), linear_shape(base)
    if weight.is_meta:
        nothing = torch.empty(config.nonzeros * max(1, len(parts)), dtype=torch.long, device="meta")
        return nothing, torch.empty_like(nothing)
    W = weight.detach() if isinstance(base, nn.Linear) else weight.detach().T
    size = outputs // len(PARTS) if parts else outputs
    each = [part * size * inputs + _chosen(W[part * size :][:size], config, generator) for part in parts or (0,)]
    flat = torch.cat(each).to(weight.device)
    return flat // inputs, flat % inputs


def _chosen(W: Tensor, config: DSEE, generator: torch.Generator) -> Tensor:
    """Positions [N] in ``W`` [O, I], laid out flat, in rising order."""
    if config.support == "random":
        return torch.randperm(W.numel(), generator=generator)[: config.nonzeros].sort().values
    if config.support == "magnitude":
        return largest(W, config.nonzeros)
    return largest(decompose(W, config.rank, config.nonzeros, generator)[2], config.nonzeros)
