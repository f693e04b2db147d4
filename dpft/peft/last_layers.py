"""The last transformer blocks train in full, everything below them is frozen.

No gradient flows below the lowest trained block, which saves its backward pass. In layers with a pattern of zeros, it
is locked (pattern.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from dpft.peft.inject import last_blocks
from dpft.peft.method import Method, expect_whole
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
        expect_whole("k", self.k)
        check_pattern(self.pattern)

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Add nothing to dense layers; refuses more blocks than there are."""
        blocks = last_blocks(model, self.k, "method.k")
        return locked(model, [p for _, block in blocks for p in block.parameters()], self.pattern)
