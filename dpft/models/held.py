"""Frozen matrices, kept in the number type that they are multiplied in.

Autocast rounds a float32 weight to bfloat16 at every use, and keeps the rounded one for the backward pass: all of a
model once more in each micro-batch. What does not train needs no float32 original, so it is rounded once:

    float32 weight ─autocast─► bfloat16 ─┐
                                         ├─► the same product, bit for bit
    bfloat16 weight ─────────────────────┘

Outside of autocast, where the preflight proves gradients in float32, a held layer widens its weights for each use.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.peft.method import Wrapper


class HeldLinear(nn.Linear):
    """A frozen Linear in bfloat16. [*, I] -> [*, O]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*_operands(x, self.weight, self.bias))


class Conv1D(nn.Module):
    """A frozen GPT-2 Conv1D in bfloat16; of the same name, by which such a layer is known. [*, I] -> [*, O]."""

    weight: nn.Parameter
    bias: nn.Parameter
    nf: int

    def forward(self, x: Tensor) -> Tensor:
        rows, weight, bias = _operands(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return torch.addmm(bias, rows, weight).view(*x.shape[:-1], self.nf)


def hold_frozen(model: nn.Module, compute: torch.dtype) -> int:
    """Keep the frozen matrices of ``model`` in bfloat16 where that is ``compute``; returns how many numbers they hold.

    Matrices of Linear and Conv1D layers alone, with their biases: tables are looked up in float32, norms are computed
    in it, and a matrix that another module has too (an output head tied to a table), or whose values a method takes
    into a product of its own, stays as it is. To be called when all is attached and before an engine is built, which
    then watches the rounded values. Training under autocast to bfloat16 is the same, bit for bit; the float32
    originals are gone from ``model``."""
    if compute != torch.bfloat16:
        return 0
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    wrappers = [m for m in model.modules() if isinstance(m, Wrapper) and m.reads_weight]
    taken = {id(m) for wrapper in wrappers for m in wrapper.base_layer.modules()}
    held = 0
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        kind = _held(module)
        if kind is None or id(module) in taken or not all(_can_be(p) and owners[id(p)] == 1 for p in own):
            continue
        module.__class__ = kind
        for p in own:
            p.data = p.data.to(torch.bfloat16)
            held += p.numel()
    return held


def _held(module: nn.Module) -> type[nn.Module] | None:
    if type(module) is nn.Linear:
        return HeldLinear
    known = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    return Conv1D if known else None


def _can_be(p: nn.Parameter) -> bool:
    return not p.requires_grad and p.dtype == torch.float32


def _operands(*tensors: Tensor | None) -> list[Any]:
    """As they are where autocast decides, which leaves float64 alone; else in float32 or wider, the first one too: T5
    brings its activations into the type of the weight that they are about to meet."""
    x = tensors[0]
    assert x is not None
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return list(tensors)
    wide = torch.promote_types(x.dtype, torch.float32)
    return [None if t is None else t.to(wide) for t in tensors]
