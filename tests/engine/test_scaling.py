"""Scale-then-privatise: the scale is a function of noised gradients alone, and what it scales is scaled back."""

from __future__ import annotations

import pytest
import torch

import dpft
from dpft.engine.plan import Plan
from dpft.engine.scaling import MEMORY, RANGE, PrivatisedScale
from dpft.errors import InputError


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Noise of deviation 0.1 on each coordinate of the mean."""
    return dpft.plan(delta=1e-5, sample_rate=1.0, expected_batch=10, noise_multiplier=1.0, steps=40)


def test_nothing_is_scaled_before_something_was_seen(plan: Plan) -> None:
    made, noised = PrivatisedScale(5, plan, every=3), torch.randn(5, dtype=torch.float64)
    for _ in range(2):
        assert torch.equal(made.undo(noised), noised)
        assert torch.equal(made.scale, torch.ones(5, dtype=torch.float64))
    made.undo(noised)
    assert not torch.equal(made.scale, torch.ones(5, dtype=torch.float64))


def test_the_scale_is_its_closed_form_and_is_taken_out_again(plan: Plan) -> None:
    """Second moments averaged with their noise's variance taken out, each by the scale of its own step."""
    made, means = PrivatisedScale(3, plan, every=1), torch.tensor([[1.0, 0.0, 0.3], [2.0, 0.1, 0.2]]).double()
    scale, moment = torch.ones(3).double(), torch.zeros(3).double()
    for n, mean in enumerate(means, start=1):
        torch.testing.assert_close(made.undo(mean * scale), mean)
        moment = MEMORY * moment + (1 - MEMORY) * (mean**2 - (0.1 / scale) ** 2)
        scale = 1 / ((moment / (1 - MEMORY**n)).clamp_min(0).sqrt() + 0.1)
        scale = (scale / scale.square().mean().sqrt()).clamp(1 / RANGE, RANGE)
        torch.testing.assert_close(made.scale, scale)


def test_noise_alone_gives_no_scale(plan: Plan) -> None:
    """Without its variance taken out, the noise that a scale makes would be learnt as signal by the next one."""
    made, generator = PrivatisedScale(2000, plan, every=5), torch.Generator().manual_seed(0)
    for _ in range(400):
        made.undo(0.1 * torch.randn(2000, generator=generator, dtype=torch.float64))
    # 100 effective steps: second moments within sqrt(2/100) of 0.01, so sizes of some 0.03 beside a noise of 0.1.
    assert 0.5 < float(made.scale.min()) <= float(made.scale.max()) < 1.4


def test_a_copied_state_goes_on_alike(plan: Plan) -> None:
    """E2."""
    one, other = PrivatisedScale(4, plan, every=2), PrivatisedScale(4, plan, every=2)
    for seed in range(3):
        one.undo(torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    for name, tensor in other.tensors.items():
        tensor.copy_(one.tensors[name])
    last = torch.tensor([3.0, 0.0, 1.0, 0.0]).double()
    assert torch.equal(one.undo(last), other.undo(last))
    assert torch.equal(one.scale, other.scale)


def test_a_scale_is_renewed_after_a_step_or_more(plan: Plan) -> None:
    with pytest.raises(InputError, match="1 step or more"):
        PrivatisedScale(4, plan, every=0)
