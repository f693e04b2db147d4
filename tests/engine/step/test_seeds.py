"""Training reads no generator that a user can seed or a checkpoint can store."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from dpft.engine.keystream import InsecureSeededWords, Keystream


def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def test_one_user_seed_twice_gives_weights_that_differ_by_noise(bench: Any) -> None:
    """C5, C6."""
    noises = []
    for _ in range(2):
        seed()
        noises.append(
            bench.train(bench.engine(bench.Direct(2000), bench.plan(steps=3)), bench.zeros(5, 2000)).flatten()
        )
    one, other = noises
    assert abs(float((one * other).mean() / (one.std() * other.std()))) < 5 / len(one) ** 0.5
    # Independent noises: their difference has sqrt(2) times the deviation; standard error 1/sqrt(2n) = 0.9 %.
    assert abs(float((one - other).std()) / 2**0.5 - 1) < 5 / (2 * len(one)) ** 0.5


def test_training_goes_on_when_the_default_generators_raise(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """C5: nothing below the engine draws from them."""
    model = bench.Branches()
    engine = bench.engine(model, bench.plan(sample_rate=0.5, expected_batch=5, steps=3))
    data = bench.gated(10, a=1.0, b=1.0)
    engine.preflight(bench.collate(data))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a generator that a user can seed was read")

    for name in (
        "rand",
        "randn",
        "randint",
        "randperm",
        "normal",
        "bernoulli",
        "multinomial",
        "rand_like",
        "randn_like",
    ):
        monkeypatch.setattr(torch, name, refuse)
    for name in ("normal_", "uniform_", "bernoulli_", "random_", "exponential_"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for name in ("random", "normal", "standard_normal", "randint", "choice", "permutation", "shuffle"):
        monkeypatch.setattr(np.random, name, refuse)
    for name in ("random", "gauss", "sample", "shuffle", "randrange", "getrandbits"):
        monkeypatch.setattr(random, name, refuse)
    assert len(bench.train(engine, data)) == 3


def test_training_leaves_the_default_generators_where_they_were(bench: Any) -> None:
    """C5: preflight included; the states that a checkpoint would store have nothing to tell."""
    model = bench.Branches()
    seed()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    engine = bench.engine(model, bench.plan(sample_rate=0.5, expected_batch=5, steps=3))
    bench.train(engine, bench.gated(10, a=1.0, b=1.0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_resuming_draws_fresh_noise(bench: Any) -> None:
    """G5, C6: noise before and after is uncorrelated, and each batch is drawn anew."""
    path, plan, noises = bench.folder / "l.jsonl", bench.plan(steps=6), []
    for resume in (False, True):
        seed()
        with bench.engine(bench.Direct(4000), plan, ledger=path, resume=resume) as engine:
            before = engine.model.layer.weight.detach().clone()
            for batch in engine.batches(bench.zeros(5, 4000), bench.collate):
                engine.step(batch)
                after = engine.model.layer.weight.detach().clone()
                noises.append((before - after).double().flatten())
                before = after
                if engine.steps_charged == 3:
                    break
    table = torch.stack(noises)
    table = table / table.norm(dim=1, keepdim=True)
    off = (table @ table.T)[~torch.eye(6, dtype=torch.bool)]
    assert len(noises) == 6
    assert float(off.abs().max()) < 5 / 4000**0.5


def test_a_seeded_source_is_declared_by_the_engine(bench: Any) -> None:
    """C5, F4: what can be replayed is never called private."""
    safe = bench.engine(bench.Direct(4), bench.plan())
    assert safe.noise_is_private
    assert "operating system" in safe.noise_source
    tests_own = bench.engine(bench.Direct(4), bench.plan(), words=InsecureSeededWords(0))
    assert not tests_own.noise_is_private
    assert "NOT PRIVATE" in tests_own.noise_source


def test_an_engine_keeps_no_key_where_it_could_be_saved(bench: Any) -> None:
    """C5, F3: neither the model nor the optimizer knows the source."""
    model = bench.Direct(4)
    engine = bench.engine(model, bench.plan(steps=2))
    bench.train(engine, bench.zeros(3))
    for held in (vars(model), vars(engine.optimizer)):
        assert not any(isinstance(v, Keystream) for v in held.values())
    assert set(model.state_dict()) == {"layer.weight"}
