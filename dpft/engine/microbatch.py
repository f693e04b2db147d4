"""A logical batch, and how it is cut into pieces that fit in memory.

The examples of a logical batch are sorted by length and cut by a token budget, so padding is almost nothing
and memory is flat in the logical batch size. Order inside a logical batch can't change any example's
gradient, so the cut is free to be whatever is fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Collate = Callable[[list[Any]], Any]
Length = Callable[[Any], int]


def token_length(example: Any) -> int:
    """Tokens of an example that has ``input_ids``; 64 for anything else."""
    if isinstance(example, Mapping) and "input_ids" in example:
        return max(1, len(example["input_ids"]))
    return 64


def cut(positions: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions grouped so that (examples in a group) x (its longest) <= budget, longest group first.

    A single example longer than the budget makes a group of its own: nothing is ever dropped."""
    groups: list[list[int]] = []
    longest = 0
    for i in sorted(positions, key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = lengths[i]
    return groups


@dataclass(eq=False)
class LogicalBatch:
    """The examples drawn for one step. Secret: neither they nor their number may be shown."""

    examples: list[Any] = field(repr=False)
    collate: Collate = field(repr=False)
    length: Length = field(repr=False, default=token_length)
    used: bool = False
