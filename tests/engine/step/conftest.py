"""A bench for the engine: models whose gradients are the data itself, plans made quickly, a fast folder."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dpft
from dpft.engine.keystream import Keystream
from dpft.engine.plan import Plan

Example = dict[str, Tensor]


def collate(examples: list[Example]) -> dict[str, Tensor]:
    return {key: torch.stack([e[key] for e in examples]) for key in examples[0]}


class Direct(nn.Module):
    """``weight . x``: the gradient of an example is its ``x``, whatever the weights are."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layer = nn.Linear(d, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(1)


def direct_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"])


class Branches(nn.Module):
    """Tensors of several kinds in two branches, each switched by a gate that is part of the data.

    A gate of 0 makes the gradient of its branch exactly zero; the preflight's made-up data opens both."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 500)
        self.norm = nn.LayerNorm(500)
        self.b = nn.Linear(30, 40, bias=False)
        self.frozen = nn.Linear(40, 40)
        self.frozen.requires_grad_(False)
        self.register_buffer("note", torch.ones(3))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        one = self.norm(self.a(x[:, :6])).sin().sum(dim=1)
        other = self.frozen(self.b(x)).sin().sum(dim=1)
        return gate[:, 0] * one + gate[:, 1] * other


def branch_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"], batch["gate"])


@functools.cache
def make_plan(**changes: Any) -> Plan:
    """Secret number of records, full batches and sigma 1, unless ``changes`` say otherwise."""
    given: dict[str, Any] = {"delta": 1e-5, "expected_batch": 10, "noise_multiplier": 1.0, "steps": 40}
    if "examples" not in changes:
        given["sample_rate"] = 1.0
    return dpft.plan(**{**given, **changes})


class Bench:
    """Builds engines on a folder of their own; every one is closed at the end of the test."""

    Direct, Branches = Direct, Branches
    direct_loss, branch_loss, collate = staticmethod(direct_loss), staticmethod(branch_loss), staticmethod(collate)
    plan = staticmethod(make_plan)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[dpft.PrivateEngine] = []

    def engine(self, model: nn.Module, plan: Plan, *, lr: float = 1.0, **options: Any) -> dpft.PrivateEngine:
        """SGD by default, so that an update is -lr times the noised mean."""
        options.setdefault("loss", direct_loss if isinstance(model, Direct) else branch_loss)
        options.setdefault("ledger", self.folder / f"ledger-{len(self._made)}.jsonl")
        optimizer = options.pop("optimizer", None)
        if optimizer is None:
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
        engine = dpft.PrivateEngine(model, optimizer, plan, **options)
        self._made.append(engine)
        return engine

    def train(self, engine: dpft.PrivateEngine, data: list[Example]) -> Tensor:
        """Every step that is left; [steps, d] float64: minus each update times the expected batch size."""
        rows, before = [], flat(engine.model)
        for batch in engine.batches(data, collate):
            engine.step(batch)
            now = flat(engine.model)
            rows.append((before - now) * engine.plan.expected_batch_size)
            before = now
        return torch.stack(rows)

    def close(self) -> None:
        for engine in self._made:
            engine.close()

    @staticmethod
    def zeros(n: int, d: int = 4) -> list[Example]:
        return [{"x": torch.zeros(d)} for _ in range(n)]

    @staticmethod
    def gated(n: int, a: float = 0.0, b: float = 0.0) -> list[Example]:
        """Examples for ``Branches``; the gates scale the gradients of its two branches."""
        g = torch.Generator().manual_seed(1)
        return [{"x": torch.randn(30, generator=g), "gate": torch.tensor([a, b])} for _ in range(n)]


def flat(model: nn.Module) -> Tensor:
    """The trainable parameters as one float64 vector."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters() if p.requires_grad])


class CountingWords(Keystream):
    """The real source, which also notes how many words each request asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[int] = []

    def words(self, n: int) -> Tensor:
        self.requests.append(n)
        return super().words(n)


@pytest.fixture
def bench(fast_path: Path) -> Iterator[Bench]:
    torch.manual_seed(0)
    made = Bench(fast_path)
    yield made
    made.close()


@pytest.fixture
def counting() -> CountingWords:
    return CountingWords()


@pytest.fixture
def weights() -> Callable[[nn.Module], Tensor]:
    return flat


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder where fsync costs nothing, if the machine has one: some tests take thousands of steps."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="dpft-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
