"""MU: a hypothesis test between neighbours, through the whole engine. What it can tell apart is mu = 1/sigma."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dpft.per_sample import Dense

SIGMA, UPDATES = 1.0, 4000
MU = 1 / SIGMA
# Standard error of the estimate from n updates a side: sqrt((2 + mu^2/2)/n) = 0.025.
ERROR = math.sqrt((2 + MU**2 / 2) / UPDATES)


def measured(bench: Any, updates: int = UPDATES) -> float:
    """Difference of the means along the canary over the standard deviation, of one-step updates at q = 1.

    The loss is linear, so that no update depends on the ones before: each is a one-step run of its own."""
    g = torch.Generator().manual_seed(3)
    others = [{"x": torch.randn(6, generator=g)} for _ in range(9)]
    sides = []
    for canary in (torch.zeros(6), torch.tensor([1e4, 0, 0, 0, 0, 0])):  # zero-out: present, or blank
        plan = bench.plan(examples=10, noise_multiplier=SIGMA, steps=updates, clip=0.5)
        engine = bench.engine(bench.Direct(6), plan)
        # Four examples a micro-batch: the canary must be clipped by itself there too.
        engine._sums.budget.tokens = 4 * 64
        sides.append(bench.train(engine, [*others, {"x": canary}])[:, 0])
    without, present = sides
    spread = torch.cat([without - without.mean(), present - present.mean()]).square().mean().sqrt()
    return float((present.mean() - without.mean()) / spread)


def test_an_attacker_learns_what_the_plan_allows_and_no_more(bench: Any) -> None:
    """B1, B3, B5, C1, C2, D5."""
    found = measured(bench)
    assert abs(found - MU) < 0.09
    # Above three standard errors by chance: 1 in 700. A fault stays when it is measured again; chance does not.
    assert found <= MU + 3 * ERROR or measured(bench) <= MU + 3 * ERROR


@pytest.mark.parametrize("fault", ["clip twice as large", "noise too small", "not clipped by itself"])
def test_the_instrument_fires(bench: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """MU on planted faults."""
    from dpft.engine import accumulate, noise

    if fault == "clip twice as large":
        monkeypatch.setattr(noise.GriddedGaussian, "bound", property(lambda self: 2 * self.clip))
    elif fault == "noise too small":
        real = noise.normals
        monkeypatch.setattr(noise, "normals", lambda source, n: (piece / 2 for piece in real(source, n)))
    else:  # the mean of the micro-batch is clipped, and counted once for each of its examples

        def clipped(forms: Any, bound: float, _clipping: str) -> Any:
            means = {name: form.dense().mean(dim=0) for name, form in forms.items()}
            examples = next(iter(forms.values())).batch
            norm = math.sqrt(sum(float(m.square().sum()) for m in means.values()))
            sums = {name: Dense(m[None] * min(1.0, bound / norm) * examples) for name, m in means.items()}
            return sums, torch.zeros(examples)

        monkeypatch.setattr(accumulate, "clipped_sum", clipped)
    # 1,000 updates a side: standard error sqrt((2 + mu^2/2)/1000), at most 0.064 for mu up to 2; the faults
    # give 2, 2, and more than 2.
    found = measured(bench, 1000)
    assert found > MU + 8 * 0.064
    assert abs(found - MU) > 0.09
