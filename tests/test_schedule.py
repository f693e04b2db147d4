"""The learning rate is a function of the public step number alone, and accuracy counts what is right."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import dpft
from dpft.config import OptimizerSection
from dpft.evaluate import scores
from dpft.schedule import build_optimizer, build_scale, factor, set_rates


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["linear", "constant", "cosine"])
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


@pytest.mark.parametrize("name", ["adam", "adamw", "adam-bc", "sgd"])
def test_the_optimizer_holds_what_trains_once(name: Any) -> None:
    """A11: the frozen rest is not in it."""
    model = nn.ModuleDict({"frozen": nn.Linear(2, 2), "body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    made = build_optimizer(OptimizerSection(name=name, lr=0.1), model, model["head"])
    held = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [g["lr"] for g in made.param_groups] == [0.1, 0.1]


def test_settings_reach_the_optimizer_and_the_noise_is_the_plans() -> None:
    head = nn.Linear(2, 2)
    plan = dpft.plan(delta=1e-5, sample_rate=0.5, expected_batch=8, noise_multiplier=1.2, steps=3, clip=0.5)
    section = OptimizerSection(name="adam-bc", betas=(0.8, 0.9), eps=1e-6, noise_floor=0.25)
    (_, group) = build_optimizer(section, head, head, plan).param_groups
    assert (group["betas"], group["eps"], group["noise_floor"]) == ((0.8, 0.9), 1e-6, 0.25)
    assert group["noise_std"] == pytest.approx(1.2 * 0.5 / 8)
    assert build_optimizer(section, head, head).param_groups[1]["noise_std"] == 0
    (_, adam) = build_optimizer(OptimizerSection(eps=1e-6), head, head, plan).param_groups
    assert (adam["betas"], adam["eps"]) == ((0.9, 0.999), 1e-6)


def test_a_scale_is_built_over_what_trains_and_only_where_there_is_noise() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    model[0].requires_grad_(False)
    plan = dpft.plan(delta=1e-5, sample_rate=0.5, expected_batch=8, noise_multiplier=1.2, steps=3)
    made = build_scale(OptimizerSection(scale="privatised"), model, plan)
    assert made is not None
    assert made.scale.shape == (9,)
    assert build_scale(OptimizerSection(scale="privatised"), model, replace(plan, noise_multiplier=0.0)) is None
    assert build_scale(OptimizerSection(), model, plan) is None


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

    assert scores(Parity(), examples, collate, budget)["accuracy"] == 0.7
