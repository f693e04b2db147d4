"""STD: on data without gradient, update x expected batch / learning rate is noise of deviation sigma * C."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

# Branches' smallest tensor has 500 coordinates; 40 steps give 20,000 values, whose deviation has a relative
# standard error of 1/sqrt(2 * 20,000) = 0.5 %. So 3 % is six of them: 2e-9 a tensor.
STEPS, TOLERANCE = 40, 0.03


def deviations(model: torch.nn.Module, noise: Tensor) -> dict[str, float]:
    """Standard deviation about zero of each trained tensor's coordinates, over all steps."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts = noise.split([p.numel() for p in params.values()], dim=1)
    return {name: float(part.square().mean().sqrt()) for name, part in zip(params, parts, strict=True)}


def check(model: torch.nn.Module, noise: Tensor, expected: float) -> None:
    for name, found in deviations(model, noise).items():
        assert abs(found / expected - 1) < TOLERANCE, f"{name}: {found} instead of {expected}"


@pytest.mark.parametrize("clip", [0.1, 1.0, 25.0])
def test_every_tensor_gets_sigma_times_clip(bench: Any, clip: float) -> None:
    """B3, C2."""
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(clip=clip, noise_multiplier=1.7, steps=STEPS))
    check(model, bench.train(engine, bench.gated(10)), 1.7 * clip)


@pytest.mark.parametrize("pieces", [1, 4])
def test_accumulation_leaves_the_noise_alone(bench: Any, counting: Any, pieces: int) -> None:
    """B5, C1: one draw a step, into however many micro-batches the batch is cut."""
    model, data, cuts = bench.Branches(), bench.gated(20), []

    def collate(examples: list[Any]) -> Any:
        cuts.append(len(examples))
        return bench.collate(examples)

    engine = bench.engine(
        model, bench.plan(steps=STEPS), token_budget=64 * 20 // pieces, words=counting
    )  # an example without tokens counts 64
    engine.preflight(bench.collate(data))
    before, rows = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]), []
    for batch in engine.batches(data, collate):
        engine.step(batch)
        now = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
        rows.append((before - now).double() * 10)
        before = now
    check(model, torch.stack(rows), 1.0)
    assert cuts == [20 // pieces] * pieces * STEPS
    assert counting.requests == [len(before) + len(before) % 2] * STEPS


@pytest.mark.parametrize("records", [5, 50])
def test_realised_batches_of_any_size_get_the_same_noise(bench: Any, records: int) -> None:
    """D5: the divisor is the plan's 10, not what was drawn."""
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(steps=STEPS))
    check(model, bench.train(engine, bench.gated(records)), 1.0)


def test_empty_batches_get_noise(bench: Any) -> None:
    """C3, D2: at this rate hardly any of the batches holds a record."""
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(sample_rate=1e-4, expected_batch=3, steps=STEPS))
    noise = bench.train(engine, bench.gated(20))
    assert len(noise) == STEPS
    check(model, noise, 1.0)


def test_no_records_at_all_still_gives_every_noisy_step(bench: Any) -> None:
    """D2, D5: where the number of records is secret, none is a possible data set."""
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(steps=STEPS))
    check(model, bench.train(engine, []), 1.0)
    assert engine.steps_charged == STEPS


def test_an_untouched_adapter_gets_noise(bench: Any) -> None:
    """C3: one branch learns, the other's gradient is zero on all records."""
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(steps=STEPS), lr=1e-3)  # small: the first branch must not wander
    noise = bench.train(engine, bench.gated(10, a=1.0)) / 1e-3
    # Updates of 1e-4 on weights of 0.2 lose 1e-8 to float32: nothing beside 3 %.
    assert abs(deviations(model, noise)["b.weight"] - 1) < TOLERANCE
    assert float(noise[:, : 6 * 500].mean(dim=0).norm()) > 0.1  # the first branch does have a signal


def test_noise_of_different_steps_tensors_and_runs_is_unrelated(bench: Any) -> None:
    """C6: recorded noise vectors are pairwise uncorrelated."""
    vectors = []
    for _ in range(2):
        torch.manual_seed(0)  # C5: the same user seed
        model = bench.Branches()
        noise = bench.train(bench.engine(model, bench.plan(steps=10)), bench.gated(10))
        vectors.extend(noise[:, :3000])  # a.weight
    table = torch.stack(vectors)
    table = table / table.norm(dim=1, keepdim=True)
    off = (table @ table.T)[~torch.eye(20, dtype=torch.bool)]
    assert float(off.abs().max()) < 5.5 / 3000**0.5  # 190 pairs of standard error 1/sqrt(3000): 7e-6 in all
    first = torch.stack(vectors)[:10]
    tensors = [first[:, :1200], first[:, 1200:2400]]
    assert abs(float((tensors[0] * tensors[1]).mean())) < 5 / 12_000**0.5


@pytest.mark.parametrize("fault", ["half the noise", "noise on one tensor only", "divided by what was drawn"])
def test_the_instrument_fires(bench: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """STD on planted faults: a detector never seen to fire proves nothing."""
    from dpft.engine import engine as module

    real = module.GriddedGaussian.release

    def faulty(self: Any, total: Tensor, source: Any) -> Tensor:
        clean = total.clone()
        noised = real(self, total, source)
        if fault == "half the noise":
            return noised / 2
        if fault == "noise on one tensor only":
            noised[3000:] = clean[3000:]
            return noised
        return noised * 10 / 50

    monkeypatch.setattr(module.GriddedGaussian, "release", faulty)
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(steps=STEPS))
    monkeypatch.setattr(engine._guard, "check_first_step", lambda: None)
    with pytest.raises(AssertionError, match="instead of"):
        check(model, bench.train(engine, bench.gated(50)), 1.0)
