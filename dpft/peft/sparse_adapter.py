"""SparseAdapter: bottleneck adapters of whose weights a fixed part exists (He et al. 2022, arXiv 2210.04284).

    y = h + W_u phi(W_d LN(h) + b_d) + b_u      W_d, W_u zero outside of a mask that is chosen before training

One threshold over all adapter matrices together; biases and LN (with ``input_norm``) are whole. Noise, clipped norm
and count are those of the weights that are left (support.py). ``density`` is the share of weights that is KEPT, as
"sparsity" is in the published code. Large-Sparse is a bottleneck k times as wide at a k-th of the density.

Which weights stay is known before training: drawn, by size or by SynFlow, which look at no record; or by SNIP and
GraSP, whose gradients are those of records: declared public ones, or, for SNIP, the noised and clipped mean gradients
of ``mask_steps`` private steps that update nothing and are paid for like any other (dpft/engine/mask_release.py).

Both matrices start as N(0, init_std^2), as published, near the identity. A start at zero would leave every score but
the drawn ones without meaning, so it goes with mask = "random" alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpft.errors import InputError
from dpft.peft.bottleneck import Bottleneck, Place
from dpft.peft.masks import (
    grasp_scores,
    keep_highest,
    magnitudes,
    random_scores,
    snip_scores,
    synflow_mask,
)
from dpft.peft.method import Public, expect_one_of, placed
from dpft.peft.support import SupportLinear
from dpft.per_sample.batches import examples_in, to_device

Mask = Literal["random", "magnitude", "synflow", "snip", "grasp"]


@dataclass(frozen=True)
class SparseAdapter(Bottleneck):
    """``density``: the share of the adapters' weights that is kept; ``mask``: the score that chooses them;
    ``mask_steps``: the private steps that pay for the gradients of mask = "snip", 0 for public records; ``init`` as
    Adapter's, with "normal" not truncated; ``input_norm``: a LayerNorm of its own before each adapter."""

    name: ClassVar[str] = "sparse-adapter"
    what: ClassVar[str] = "bottleneck layers with a part of their weights (He et al. 2022)"

    density: float = 0.5
    mask: Mask = "random"
    mask_steps: int = 0
    input_norm: bool = False
    init: Literal["normal", "xavier", "zero"] = "normal"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of("mask", self.mask, get_args(Mask))
        expect_one_of("init", self.init, ("normal", "xavier", "zero"))
        if not 0 < self.density <= 1:
            raise InputError(f"Expected method.density={self.density}, the share that is kept, above 0 and at most 1.")
        if not 0 < self.init_std < math.inf:
            raise InputError(f"Expected method.init_std={self.init_std} to be a finite number above 0.")
        if isinstance(self.mask_steps, bool) or not isinstance(self.mask_steps, int) or self.mask_steps < 0:
            raise InputError(f"Expected method.mask_steps={self.mask_steps} to be a whole number of at least 0.")
        if self.mask_steps and self.mask != "snip":
            raise InputError(
                f'method.mask_steps pays for the gradients of mask="snip", not of mask={self.mask!r}; leave it out.'
            )
        if self.init == "zero" and self.mask != "random":
            raise InputError(
                f'With method.init="zero" every weight of an up-projection scores 0 by mask={self.mask!r}; take '
                'init="normal", or mask="random".'
            )

    @property
    def identity(self) -> bool:
        return self.init == "zero"

    @property
    def wants_public(self) -> bool:
        return self.mask in ("snip", "grasp") and not self.mask_steps

    def inform(self, model: nn.Module, public: Public) -> None:
        """Choose the support by the gradients of the mean loss over all public records, in eval mode."""
        if public.loss is None:
            raise InputError("The mask is made from gradients of the training loss; give Public(batches, loss=...).")
        layers = prunable(model)
        values: list[Tensor] = [layer.values for layer in layers]
        training, asked = model.training, [v.requires_grad for v in values]
        model.eval()
        for v in values:
            v.requires_grad_(True)
        gradients = _mean_gradients(model, public, values)
        if self.mask == "grasp":
            gradients = _mean_gradients(model, public, values, towards=gradients)
        for v, before in zip(values, asked, strict=True):
            v.requires_grad_(before)
        model.train(training)
        self.choose(layers, gradients)

    def choose(self, layers: Sequence[SupportLinear], gradients: Sequence[Tensor]) -> None:
        """Narrow layers, whose supports are whole, by ``gradients`` of their values (of GraSP: the products H g)."""
        if not any(bool(g.any()) for g in gradients):
            raise InputError(
                "The gradients that the mask is made from are all zero: what stands behind the adapters lets none "
                "through, a head that starts at zero say."
            )
        weights = [layer.weight.detach() for layer in layers]
        laid_out = [g.view(w.shape) for g, w in zip(gradients, weights, strict=True)]
        score = grasp_scores if self.mask == "grasp" else snip_scores
        for layer, mask in zip(layers, keep_highest(score(weights, laid_out), self._count(weights)), strict=True):
            layer.keep(mask)

    def _default_size(self, width: int) -> int:
        return 64

    def _count(self, weights: Sequence[Tensor]) -> int:
        return round(self.density * sum(w.numel() for w in weights))

    def _layers(self, places: list[Place], generator: torch.Generator) -> list[tuple[nn.Module, nn.Module]]:
        """Drawn and masked before they go to the model's device and type, so that both are the same everywhere."""
        drawn = [
            w
            for place, m in ((place, self._size(place)) for place in places)
            for w in (self._drawn(m, place.width, generator), self._drawn(place.width, m, generator, up=True))
        ]
        masks = self._free_masks(drawn, generator)
        layers = [self._layer(w, place) for place, pair in zip(places, _pairs(drawn), strict=True) for w in pair]
        for layer, mask in zip(layers, masks or [], strict=masks is not None):
            layer.keep(mask)
        return [
            (_Normed(place, down) if self.input_norm else down, up)
            for place, (down, up) in zip(places, _pairs(layers), strict=True)
        ]

    def _drawn(self, outputs: int, inputs: int, generator: torch.Generator, *, up: bool = False) -> Tensor:
        weight = torch.zeros(outputs, inputs)
        if self.init == "normal":
            return weight.normal_(0, self.init_std, generator=generator)
        if self.init == "xavier" or not up:
            nn.init.xavier_normal_(weight, generator=generator)
        return weight

    def _free_masks(self, drawn: list[Tensor], generator: torch.Generator) -> list[Tensor] | None:
        """The masks that need no gradient; None for the others, which come later."""
        count = self._count(drawn)
        match self.mask:
            case "random":
                return keep_highest(random_scores(drawn, generator), count)
            case "magnitude":
                return keep_highest(magnitudes(drawn), count)
            case "synflow":
                return synflow_mask(_pairs(drawn), count)
        return None

    def _layer(self, weight: Tensor, place: Place) -> SupportLinear:
        bias = placed(torch.zeros(len(weight)), place.like) if self.bias else None
        return SupportLinear(placed(weight, place.like), bias)


class _Normed(nn.Module):
    """A LayerNorm and the down-projection behind it."""

    def __init__(self, place: Place, down: SupportLinear) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(place.width, device="meta")
        self.norm.weight = placed(torch.ones(place.width), place.like)
        self.norm.bias = placed(torch.zeros(place.width), place.like)
        self.down = down

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.down(self.norm(h))
        return out


def prunable(model: nn.Module) -> list[SupportLinear]:
    """The layers of the adapters in ``model``, in its order."""
    return [m for m in model.modules() if isinstance(m, SupportLinear)]


def _pairs(items: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _mean_gradients(
    model: nn.Module, public: Public, values: list[Tensor], towards: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """The gradient of the mean loss over all batches, g; with ``towards`` v, the product H v of its Hessian."""
    assert public.loss is not None
    sums, records = [torch.zeros_like(v, dtype=torch.float64) for v in values], 0
    # The fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in public.batches:
            batch = to_device(batch, values[0].device)
            total = public.loss(model, batch).sum()
            found = torch.autograd.grad(total, values, create_graph=towards is not None)
            if towards is not None:
                inner = sum((g * v.to(g)).sum() for g, v in zip(found, towards, strict=True))
                assert isinstance(inner, Tensor)
                found = torch.autograd.grad(inner, values)
            for s, g in zip(sums, found, strict=True):
                s += g.detach()
            records += examples_in(batch)
    return [s / max(1, records) for s in sums]
