"""Frozen matrices, kept in the number type that they are multiplied in.

Autocast rounds a float32 weight to bfloat16 at every use, and keeps the rounded one for the backward pass: all of a
model once more in each micro-batch. What does not train needs no float32 original, so it is rounded once:

    float32 weight ─autocast─► bfloat16 ─┐
                                         ├─► the same product, bit for bit
    bfloat16 weight ─────────────────────┘

Outside of autocast, where the preflight proves gradients in float32, a held layer widens its weights for each use, and
keeps nothing wide.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dpft.peft.method import Wrapper


class HeldLinear(nn.Linear):
    """A frozen Linear in bfloat16. [*, I] -> [*, O]."""

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias, transposed=False)


class Conv1D(nn.Module):
    """A frozen GPT-2 Conv1D in bfloat16; of the same name, by which such a layer is known. [*, I] -> [*, O]."""

    weight: nn.Parameter  # [I, O]
    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias, transposed=True)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    """In bfloat16 under autocast, which leaves float64 alone; else in float32 or wider."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return F.linear(x, weight.T if transposed else weight, bias)
    # T5 brings its activations into the type of the weight that they are about to meet.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if type(x) is Tensor:
        out: Tensor = _Widened.apply(x, weight, bias, transposed)  # type: ignore[no-untyped-call]
        return out
    wide = weight.to(x.dtype)  # a tensor that answers torch functions itself: of parameters alone
    return F.linear(x, wide.T if transposed else wide, None if bias is None else bias.to(x.dtype))


class _Room(threading.local):
    """Where a thread widens one weight after the other: a new tensor for each would leave holes between activations,
    and a process that does not shrink."""

    room = torch.empty(0)

    def widened(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """``weight`` in ``dtype``, until the next call."""
        size = weight.numel()
        if size > _MOST:
            return weight.to(dtype)
        if self.room.numel() < size or self.room.dtype != dtype or self.room.device != weight.device:
            self.room = torch.empty(size, dtype=dtype, device=weight.device)
        return self.room[:size].view(weight.shape).copy_(weight)


_MOST = 1 << 24  # numbers for which a thread keeps room
_ROOM = _Room()


class _Widened(torch.autograd.Function):
    """``x W^T + b``, or ``x W + b``, with a frozen weight that is widened for it and again for its gradient: kept until
    then, all of a model would be in memory in float32 after all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.transposed = transposed
        wide = _ROOM.widened(weight, x.dtype)
        return F.linear(x, wide.T if transposed else wide, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        (weight,) = ctx.saved_tensors
        wide = _ROOM.widened(weight, g.dtype)
        return g @ (wide.T if ctx.transposed else wide), None, None, None


def hold_frozen(model: nn.Module, compute: torch.dtype) -> None:
    """Keep the frozen matrices of ``model`` in bfloat16 where that is ``compute``.

    Matrices of Linear and Conv1D layers alone, with their biases: tables are looked up in float32, norms are computed
    in it. A matrix stays as it is, too, that stands beside a bias that trains, that another module has as well (an
    output head tied to a table), that a method brought, or whose values a method takes into a product of its own. To be
    called when all is attached and before an engine is built, which then watches the rounded values. Training under
    autocast to bfloat16 is the same, bit for bit; the float32 originals are gone from ``model``."""
    if compute != torch.bfloat16:
        return
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    taken = {id(m) for wrapper in model.modules() if isinstance(wrapper, Wrapper) for m in _of_the_method(wrapper)}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        kind = _held(module)
        if kind is None or id(module) in taken or not all(_can_be(p) and owners[id(p)] == 1 for p in own):
            continue
        module.__class__ = kind
        for p in own:
            p.data = p.data.to(torch.bfloat16)


def _of_the_method(wrapper: Wrapper) -> list[nn.Module]:
    """What the wrapper brought (a factor may be frozen, and is saved as it is), and the base whose weight it reads."""
    base = set(wrapper.base_layer.modules())
    return [m for m in wrapper.modules() if wrapper.reads_weight or m not in base]


def _held(module: nn.Module) -> type[nn.Module] | None:
    if type(module) is nn.Linear:
        return HeldLinear
    known = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    return Conv1D if known else None


def _can_be(p: nn.Parameter) -> bool:
    return not p.requires_grad and p.dtype == torch.float32
