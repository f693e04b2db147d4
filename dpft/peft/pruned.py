"""A frozen layer of whose weights only some take part: y = (W * mask) x + b.

The mask is kept with the adapter, eight weights a byte, and W itself is not touched, so that taking the wrapper out
gives the pretrained layer back. One product with the mask in each forward pass.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dpft.peft.method import Wrapper


class Pruned(Wrapper):
    """A Linear (or GPT-2 Conv1D) under a mask that starts whole. [B, ..., I] -> [B, ..., O]."""

    reads_weight = True
    bits: Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        weight = cast(Tensor, base.weight)
        self.register_buffer("bits", packed(torch.ones(weight.shape, dtype=torch.bool, device=weight.device)))

    @property
    def mask(self) -> Tensor:
        """What takes part, as true and false in the weight's own shape."""
        return unpacked(self.bits, cast(Tensor, self.base_layer.weight).shape)

    def keep(self, mask: Tensor) -> None:
        """Let exactly the weights under ``mask``, of the weight's shape, take part."""
        self.bits.copy_(packed(mask))

    def forward(self, x: Tensor) -> Tensor:
        weight = cast(Tensor, self.base_layer.weight)
        y: Tensor = functional_call(self.base_layer, {"weight": weight * self.mask}, (x,))
        return y

    def merged(self) -> nn.Module:
        cast(Tensor, self.base_layer.weight).data *= self.mask
        return self.base_layer


def packed(mask: Tensor) -> Tensor:
    """Eight values a byte, the first in the highest bit, as numpy's packbits lays them: uint8 [size / 8, up]."""
    bits = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << _places(mask)).sum(dim=1).to(torch.uint8)


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """The reverse: true and false, in ``shape``."""
    each = (bits[:, None] >> _places(bits)) & 1
    return each.flatten()[: shape.numel()].view(shape).bool()


def _places(like: Tensor) -> Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=like.device)
