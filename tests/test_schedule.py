"""The learning rate is a function of the public step number alone, and accuracy counts what is right."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from dpft.config import OptimizerSection
from dpft.evaluate import accuracy
from dpft.schedule import build_optimizer, factor, set_rates


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_every_step_has_a_rate_above_zero_and_at_most_the_base(kind: Any, warmup: float, steps: int) -> None:
    """D5, A12: nothing but the step's number goes in, and no step is wasted."""
    values = [factor(kind, s, steps, warmup) for s in range(steps)]
    assert all(0 < v <= 1 + 1e-12 for v in values)
    rise = sum(s < warmup * steps for s in range(steps))
    assert all(a < b for a, b in pairwise(values[:rise]))
    assert all(a >= b for a, b in pairwise(values[rise:]))


def test_a_resumed_run_has_the_rates_of_a_whole_one() -> None:
    """E2: no state of a scheduler is needed."""
    body, head = nn.Linear(2, 2), nn.Linear(2, 2)
    section = OptimizerSection(lr=1e-3, head_lr=1e-2, warmup=0.25)
    one, other = (build_optimizer(section, nn.ModuleList([body, head]), head) for _ in range(2))
    for step in range(6):
        set_rates(one, section, step, 8)
    set_rates(other, section, 5, 8)
    rates = [[g["lr"] for g in o.param_groups] for o in (one, other)]
    assert rates[0] == rates[1]
    assert rates[0][1] == pytest.approx(10 * rates[0][0])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_optimizer_holds_what_trains_once(name: Any) -> None:
    """A11: the frozen rest is not in it."""
    model = nn.ModuleDict({"frozen": nn.Linear(2, 2), "body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    made = build_optimizer(OptimizerSection(name=name, lr=0.1), model, model["head"])
    held = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [g["lr"] for g in made.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("budget", [1, 5, 1000])
def test_accuracy_counts_every_example_once(budget: int) -> None:
    """D3: however the examples are cut."""

    class Parity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(1, 1)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            odd = input_ids[:, 0] % 2
            return torch.stack([1.0 - odd, odd.float()], dim=1)

    examples = [{"input_ids": [i] * (1 + i % 3), "label": i % 2 if i < 7 else 1 - i % 2} for i in range(10)]

    def collate(some: list[Any]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.tensor([e["input_ids"][:1] for e in some]),
            "labels": torch.tensor([e["label"] for e in some]),
        }

    assert accuracy(Parity(), examples, collate, budget) == 0.7
