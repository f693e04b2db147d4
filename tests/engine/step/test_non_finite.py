"""Examples that are not finite count as zero before the sum, and leave no public trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpft.engine.keystream import InsecureSeededWords


def good(n: int) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [{"x": torch.randn(6, generator=g)} for _ in range(n)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("at", [0, 3, 6])
def test_the_update_is_that_of_the_others(bench: Any, weights: Any, bad: float, at: int) -> None:
    """A9: to the bit, with one seeded noise. 3e38 is finite and its square is not: it must be clipped or
    zeroed like the others, so only those cases that can't be clipped are compared to the bit."""
    ends = []
    for poison in (True, False):
        torch.manual_seed(1)
        model = bench.Direct(6)
        data = good(6)
        if poison:
            data.insert(at, {"x": torch.full((6,), bad)})
        engine = bench.engine(model, bench.plan(steps=5), words=InsecureSeededWords(3))
        bench.train(engine, data)
        ends.append(weights(model))
    if bad == 3e38:
        assert ends[0].isfinite().all()
    else:
        # Other examples share the micro-batch, so their sum may round otherwise: float32, six terms below 1.
        assert float((ends[0] - ends[1]).abs().max()) < 5 * 6 * 1.2e-7


def test_noise_is_complete_on_data_that_is_not_finite(bench: Any) -> None:
    """A9: noise added and then removed with the NaN is what fastDP does."""
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(steps=40))
    data = [*bench.gated(3), {"x": torch.full((30,), float("nan")), "gate": torch.ones(2)}]
    noise = bench.train(engine, data)
    # 40 steps times at least 500 coordinates: relative standard error 0.5 % a tensor; six of them.
    for part in noise.split([3000, 500, 500, 500, 1200], dim=1):
        assert abs(float(part.square().mean().sqrt()) - 1) < 0.03


def test_a_loss_that_is_always_nan_ends_with_finite_weights_and_every_step_charged(bench: Any, weights: Any) -> None:
    """G4, A9, E3."""
    model = bench.Direct(6)
    taken = [0]
    engine = bench.engine(
        model,
        bench.plan(steps=7),
        loss=lambda m, b: bench.direct_loss(m, b) * torch.where(b["flag"] > 0, torch.nan, 1.0),
    )
    engine.preflight({"x": torch.randn(3, 6), "flag": torch.zeros(3)})
    engine.optimizer.register_step_post_hook(lambda *_: taken.__setitem__(0, taken[0] + 1))
    before = weights(model)
    bench.train(engine, [{"x": torch.randn(6), "flag": torch.ones(())}] * 5)
    assert engine.steps_charged == 7
    assert taken == [7]
    assert weights(model).isfinite().all()
    assert not torch.equal(weights(model), before)


def test_the_ledger_does_not_tell_whether_an_example_was_finite(bench: Any) -> None:
    """A9, F2, E3: same lines, same words drawn."""
    seen = []
    for value in (float("nan"), 1.0):
        words = Noting(4)
        path = bench.folder / f"{value}.jsonl"
        with bench.engine(bench.Direct(6), bench.plan(steps=3), ledger=path, words=words) as engine:
            bench.train(engine, [*good(4), {"x": torch.full((6,), value)}])
        seen.append((path.read_bytes(), words.requests))
    assert seen[0] == seen[1]


class Noting(InsecureSeededWords):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.requests: list[int] = []

    def words(self, n: int) -> torch.Tensor:
        self.requests.append(n)
        return super().words(n)
