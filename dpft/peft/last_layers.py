"""The last transformer blocks train in full, everything below them is frozen.

No gradient flows below the lowest trained block, which saves its backward pass. In layers with a pattern of zeros, it
is locked (pattern.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.peft.families import FAMILIES, blocks_of, model_type
from dpft.peft.method import Method
from dpft.peft.pattern import Pattern, check_pattern, locked


@dataclass(frozen=True)
class LastLayers(Method):
    """All parameters of the last ``k`` blocks; of the decoder's, where there are encoder and decoder."""

    name: ClassVar[str] = "last-k"
    what: ClassVar[str] = "the last k transformer blocks in full"
    merges: ClassVar[bool] = True

    k: int = 1
    pattern: Pattern = "lock"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"Expected method.k={self.k} to be a whole number of at least 1.")
        check_pattern(self.pattern)

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Add nothing to dense layers; refuses more blocks than there are."""
        if model_type(model) not in FAMILIES:
            raise InputError(
                f"method.name = last-k knows no blocks of the model family {model_type(model)!r}, only of "
                f"{', '.join(FAMILIES)}; use full with targets instead."
            )
        stack = blocks_of(model)[-1]
        if self.k > len(stack):
            raise InputError(f"Expected method.k={self.k} to be at most {len(stack)}, the number of blocks.")
        return locked(model, [p for _, block in stack[-self.k :] for p in block.parameters()], self.pattern)
