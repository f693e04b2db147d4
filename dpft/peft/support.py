"""A Linear layer of which only the weights on a fixed support exist.

    y = W x + b,    W [O, I] = values [K] under the mask, row by row; zero elsewhere

What trains is ``values`` and the bias: noise goes to K numbers, the norm that clips is that of the K, and so is the
count (dpft/per_sample/masked.py). The mask is a persistent buffer, eight places a byte, and is saved with the values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.pruned import packed, unpacked
from dpft.per_sample.masked import scattered


class SupportLinear(nn.Module):
    """[B, ..., I] -> [B, ..., O]. Its support starts whole."""

    bits: Tensor

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.shape = weight.shape
        whole = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        self.register_buffer("bits", packed(whole))
        self.values = nn.Parameter(weight.detach().flatten())
        self.bias = bias

    @property
    def mask(self) -> Tensor:
        """The support, true and false [O, I]."""
        return unpacked(self.bits, self.shape)

    @property
    def weight(self) -> Tensor:
        """W [O, I], zeros included."""
        return scattered(self.values, self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def keep(self, mask: Tensor) -> None:
        """Let exactly the places under ``mask`` [O, I], which lie on the support, be the support."""
        if self.values.is_meta:
            self._replace(self.values.new_empty(int(mask.sum())))
        else:
            self._replace(self.weight.detach()[mask.to(self.values.device)])
        self.bits = packed(mask.to(self.bits.device))

    def fit_to(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for the stored support, which may be of another size."""
        stored = tensors.get("bits")
        if stored is None:
            return
        if stored.shape != self.bits.shape or stored.dtype != self.bits.dtype:
            raise InputError("The adapter does not fit this model: a layer's support is of another size.")
        self._replace(self.values.new_zeros(int(unpacked(stored, self.shape).sum())))

    def _replace(self, values: Tensor) -> None:
        self.values = nn.Parameter(values, requires_grad=self.values.requires_grad)
