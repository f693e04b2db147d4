"""Running a model on recorded outputs: recorded modules answer with them, skipped ones with NaN.

B examples, T tokens, W numbers a token: the widths of all points side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpft.cache.taps import Taps
from dpft.per_sample.oracle import Loss

RECORDED = "recorded"
"""The batch's key for recorded outputs, [B, T, W]; [B, W] where a record has one vector."""


@dataclass(frozen=True)
class Point:
    """A place and the first tensor that it returns: its width and number type. ``items``: the length of the tuple that
    holds it, 0 where it is returned as it is; what else is in the tuple is not kept."""

    place: str
    width: int
    dtype: torch.dtype
    items: int

    def answer(self, value: Tensor) -> Any:
        value = value.to(self.dtype)
        return (value, *(None,) * (self.items - 1)) if self.items else value


@dataclass(frozen=True)
class Cut:
    """Where a model is cut in two. ``points`` are recorded; ``skipped`` come before them and are needed by nothing
    else. ``tokens``: how many each record has at the points, None where as many as its attention mask has ones, 0 for
    one vector a record."""

    points: tuple[Point, ...]
    skipped: tuple[Point, ...]
    tokens: int | None

    @property
    def width(self) -> int:
        return sum(point.width for point in self.points)

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(point.place for point in (*self.points, *self.skipped))


class Replay:
    """A model under taps. A batch with ``recorded`` in it runs on that; any other runs the whole model.

    ``remove`` takes it off the model again."""

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        self.model, self.cut = model, cut
        self._taps = Taps(model, cut.places)
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._taps.remove()

    @torch.no_grad()
    def record(self, loss: Loss, batch: Mapping[str, Tensor]) -> Tensor:
        """What the points return on ``batch``, [B, T, W] or [B, W], in the widest of their number types."""
        heard: dict[str, list[Any]] = {}
        self._taps.heard = heard
        try:
            loss(self.model, batch)
        finally:
            self._taps.heard = None
        return torch.cat([first(heard[point.place][0]) for point in self.cut.points], dim=-1)

    def batch(self, inputs: Mapping[str, Tensor], recorded: Tensor) -> dict[str, Tensor]:
        """``inputs`` with what was recorded; without what only skipped modules read, where all of the model is."""
        kept = inputs if self.cut.tokens != 0 else {"labels": inputs["labels"]}
        return {**kept, RECORDED: recorded}

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        recorded = kwargs.get(RECORDED)
        if recorded is not None:
            self._taps.answers = self._answers(recorded)
        return args, {name: value for name, value in kwargs.items() if name != RECORDED}

    def _end(self, *_: Any) -> None:
        self._taps.answers = None

    def _answers(self, recorded: Tensor) -> dict[str, Any]:
        widths = [point.width for point in self.cut.points]
        parts: tuple[Tensor, ...] = torch.split(recorded, widths, dim=-1)
        found = {point.place: point.answer(part) for point, part in zip(self.cut.points, parts, strict=True)}
        # Not a number, and of no size in memory: what nothing may read, seen at once if something does.
        nothing = torch.full((), math.nan, device=recorded.device)
        for point in self.cut.skipped:
            found[point.place] = point.answer(nothing.expand(*recorded.shape[:-1], point.width))
        return found


def first(output: Any) -> Tensor:
    """The tensor that a block returns, alone or as the first of a tuple."""
    found = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(found, Tensor):
        raise TypeError(f"expected a tensor, or a tuple that begins with one, found {type(output).__name__}")
    return found


def point_of(place: str, output: Any) -> Point:
    """The point that returned ``output``."""
    tensor = first(output)
    return Point(place, tensor.shape[-1], tensor.dtype, len(output) if isinstance(output, tuple) else 0)
