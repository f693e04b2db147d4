"""Running a model on recorded outputs: recorded modules answer with them, skipped ones with NaN.

B examples, T tokens, W numbers a token: the widths of all points side by side. A decoder beside an encoder has tokens
of its own, those of the target, and so its outputs are a second stream: [B, S, V] beside [B, T, W].
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
DECODED = "recorded_decoder"
"""The key for those of a decoder beside an encoder, [B, S, V]."""

Recorded = Mapping[str, Tensor]
"""Stream -> what its points returned."""


@dataclass(frozen=True)
class Point:
    """A place and the first tensor that it returns: its width and number type. ``items``: the length of the tuple that
    holds it, 0 where it is returned as it is; what else is in the tuple is not kept. ``stream``: whose tokens it has,
    the batch's key for them."""

    place: str
    width: int
    dtype: torch.dtype
    items: int
    stream: str = RECORDED

    def answer(self, value: Tensor) -> Any:
        value = value.to(self.dtype)
        return (value, *(None,) * (self.items - 1)) if self.items else value


@dataclass(frozen=True)
class Cut:
    """Where a model is cut in two. ``points`` are recorded; ``skipped`` come before them and are needed by nothing
    else. ``tokens``: how many each record has at the points, None where as many as it has itself (its attention mask's
    ones; in a decoder its target's tokens), 0 for one vector a record."""

    points: tuple[Point, ...]
    skipped: tuple[Point, ...]
    tokens: int | None

    @property
    def widths(self) -> dict[str, int]:
        """Stream -> numbers a token."""
        found: dict[str, int] = {}
        for point in self.points:
            found[point.stream] = found.get(point.stream, 0) + point.width
        return found

    @property
    def width(self) -> int:
        """Of the widest stream."""
        return max(self.widths.values())

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
    def record(self, loss: Loss, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the points return on ``batch``, stream by stream, each in the widest of its number types."""
        heard: dict[str, list[Any]] = {}
        self._taps.heard = heard
        try:
            loss(self.model, batch)
        finally:
            self._taps.heard = None
        outputs = {point.place: first(heard[point.place][0]) for point in self.cut.points}
        return {
            stream: torch.cat([outputs[point.place] for point in self.cut.points if point.stream == stream], dim=-1)
            for stream in self.cut.widths
        }

    def batch(self, inputs: Mapping[str, Tensor], recorded: Recorded) -> dict[str, Tensor]:
        """``inputs`` with what was recorded; without what only skipped modules read, where all of the model is."""
        kept = inputs if self.cut.tokens != 0 else {"labels": inputs["labels"]}
        return {**kept, **recorded}

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        recorded = {stream: kwargs[stream] for stream in self.cut.widths if stream in kwargs}
        if recorded:
            self._taps.answers = self._answers(recorded)
        return args, {name: value for name, value in kwargs.items() if name not in recorded}

    def _end(self, *_: Any) -> None:
        self._taps.answers = None

    def _answers(self, recorded: Recorded) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for stream, rows in recorded.items():
            points = [point for point in self.cut.points if point.stream == stream]
            parts: tuple[Tensor, ...] = torch.split(rows, [point.width for point in points], dim=-1)
            found.update({point.place: point.answer(part) for point, part in zip(points, parts, strict=True)})
        for point in self.cut.skipped:
            rows = recorded[point.stream]
            # Not a number, and of no size in memory: what nothing may read, seen at once if something does.
            nothing = torch.full((), math.nan, device=rows.device)
            found[point.place] = point.answer(nothing.expand(*rows.shape[:-1], point.width))
        return found


def first(output: Any) -> Tensor:
    """The tensor that a block returns, alone or as the first of a tuple."""
    found = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(found, Tensor):
        raise TypeError(f"expected a tensor, or a tuple that begins with one, found {type(output).__name__}")
    return found


def point_of(place: str, output: Any, stream: str = RECORDED) -> Point:
    """The point that returned ``output``."""
    tensor = first(output)
    return Point(place, tensor.shape[-1], tensor.dtype, len(output) if isinstance(output, tuple) else 0, stream)
