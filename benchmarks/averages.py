"""Averages over the steps of one training, each evaluated in place of the last step: differences without the noise
between trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import dpft.run
from dpft.average import Average
from dpft.config import OptimizerSection
from dpft.heldout import Heldout

AVERAGES: Mapping[str, dict[str, Any]] = {
    "ema, decay 0.8": {"average": "ema", "average_decay": 0.8},
    "ema, decay 0.9": {"average": "ema", "average_decay": 0.9},
    "tail, a quarter": {"average": "tail", "average_tail": 0.25},
    "tail, half": {"average": "tail", "average_tail": 0.5},
}


@contextmanager
def averaged_too(scores: dict[str, float], really: bool) -> Iterator[None]:
    """While open, a run puts into ``scores`` what each of :data:`AVERAGES` would have had; the run is as ever."""
    history: list[dict[str, Tensor]] = []
    made: list[Recorded] = []

    class Recorded(Average):
        """Keeps the values after each step."""

        def __init__(self, section: OptimizerSection, params: Mapping[str, nn.Parameter], steps: int) -> None:
            super().__init__(section, params, steps)
            self.params, self.steps, self.section = params, steps, section
            made.append(self)

        def update(self, done: int) -> None:
            super().update(done)
            history.append({name: p.detach().clone() for name, p in self.params.items()})

    class Evaluated(Heldout):
        """Evaluates the averages first, and puts the last step's values back."""

        def after(self, model: Any, say: Any) -> Any:
            for name, fields in AVERAGES.items():
                _apply(made[0], fields, history)
                scores[name] = self._scores(model)["accuracy"]
            _put(made[0].params, history[-1])
            return super().after(model, say)

    recorded = patch.multiple(dpft.run, Average=Recorded, Heldout=Evaluated)
    if not really:
        yield
        return
    with recorded:
        yield


def _apply(recorded: Any, fields: dict[str, Any], history: list[dict[str, Tensor]]) -> None:
    """dpft's own average of the values, step by step, in place of them."""
    average = Average(recorded.section.model_copy(update=fields), recorded.params, recorded.steps)
    for done, values in enumerate(history, start=1):
        _put(recorded.params, values)
        average.update(done)
    average.apply()


@torch.no_grad()
def _put(params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, p in params.items():
        p.copy_(values[name])
