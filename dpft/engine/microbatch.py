"""A logical batch, and how it is cut into pieces that fit in memory.

The examples of a logical batch are sorted by length and cut by a token budget, so padding is almost nothing
and memory is flat in the logical batch size. Order inside a logical batch can't change any example's
gradient, so the cut is free to be whatever is fastest: on a CPU a further micro-batch costs little, and padding a lot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Collate = Callable[[list[Any]], Any]
Length = Callable[[Any], int]
_CLASS = math.log(1.25)


def token_length(example: Any) -> int:
    """Tokens of an example that has ``input_ids``; 64 for anything else."""
    if isinstance(example, Mapping) and "input_ids" in example:
        return max(1, len(example["input_ids"]))
    return 64


def cut(positions: Iterable[int], lengths: Sequence[int], budget: int, *, narrow: bool = False) -> list[list[int]]:
    """Positions grouped so that (examples in a group) x (its longest) <= budget, longest group first.

    With ``narrow`` the lengths in a group are also of one class, 25 % apart at most. The classes are fixed, so that one
    example more or less regroups those of its own class alone. A single example longer than the budget makes a group of
    its own: nothing is ever dropped."""
    groups: list[list[int]] = []
    longest = 0
    for i in sorted(positions, key=lambda i: -lengths[i]):
        alike = not narrow or _class(lengths[i]) == _class(longest)
        if groups and alike and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = lengths[i]
    return groups


def narrow_on(device_type: str) -> bool:
    """Whether micro-batches of one class of lengths are faster: on a GPU launching them costs more than padding."""
    return device_type == "cpu"


def _class(length: int) -> int:
    return math.floor(math.log(max(length, 1)) / _CLASS)


@dataclass(eq=False)
class LogicalBatch:
    """The examples drawn for one step. Secret: neither they nor their number may be shown."""

    examples: list[Any] = field(repr=False)
    collate: Collate = field(repr=False)
    length: Length = field(repr=False, default=token_length)
    used: bool = False
