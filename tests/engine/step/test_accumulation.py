"""The clipped sum: one example moves it by at most C, and the cut into micro-batches not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.engine.accumulate import Accumulator
from dpft.engine.microbatch import LogicalBatch
from dpft.engine.synthetic import synthetic_like
from dpft.engine.token_budget import Asked
from dpft.errors import PrivacyError, TrainingError
from dpft.per_sample import per_example_gradients
from dpft.per_sample.capture import trainable
from dpft.per_sample.oracle import clipped_sum


class Bag(nn.Module):
    """Words of unequal number -> one vector -> two logits; frozen and trained parts, float32."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.body = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 2)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.body(self.embed(input_ids)).tanh())
        return self.head((x * mask.unsqueeze(-1)).sum(dim=1))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"], batch["mask"]), batch["labels"], reduction="none")


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    T = max(len(e["input_ids"]) for e in examples)
    ids = torch.zeros(len(examples), T, dtype=torch.int64)
    mask = torch.zeros(len(examples), T)
    for i, e in enumerate(examples):
        ids[i, : len(e["input_ids"])] = torch.tensor(e["input_ids"])
        mask[i, : len(e["input_ids"])] = 1
    return {"input_ids": ids, "mask": mask, "labels": torch.tensor([e["label"] for e in examples])}


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(2)
    lengths = [1, 9, 3, 17, 2, 5, 5, 12, 1, 30]
    return [
        {"input_ids": torch.randint(0, 30, (n,), generator=g).tolist(), "label": i % 2} for i, n in enumerate(lengths)
    ]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(4)
    return Bag()


@pytest.fixture
def total(model: nn.Module) -> Callable[..., Tensor]:
    def sum_of(examples: list[Any], bound: float, budget: Asked, loss: Any = loss) -> Tensor:
        made = Accumulator(model, loss, trainable(model), bound, budget)
        return made.sum(LogicalBatch(examples, collate))[0]

    return sum_of


# float32: 6e-8 a rounding, and a sum over an example's tokens makes some dozens of them, so 1e-5 is ample for
# one gradient; C (1 + 1e-4) is the room that the clip's own margin of 2^-13 = 1.2e-4 leaves for it.
ROOM = 1e-4
BUDGETS = (1, 16, 40, 75, 10_000)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("bound", [1e-2, 8.0])
def test_leaving_one_out_moves_the_sum_by_at_most_the_clip(
    total: Any, examples: Any, bound: float, budget: int
) -> None:
    """LOO, A4, B1, B2: with a bound far below the norms, and one near them."""
    whole = total(examples, bound, budget)
    moved = [
        float((whole - total(examples[:i] + examples[i + 1 :], bound, budget)).norm()) for i in range(len(examples))
    ]
    assert max(moved) <= bound * (1 + ROOM)
    assert max(moved) > bound * 0.9  # the clip is really reached: the test is not idle


@pytest.mark.parametrize("bound", [1e-2, 8.0, 1e3])
def test_the_sum_does_not_depend_on_the_cut_and_equals_one_example_at_a_time(
    total: Any, model: nn.Module, examples: Any, bound: float
) -> None:
    """A4, B5, ORACLE."""
    singles = [per_example_gradients(model, loss, collate([e])) for e in examples]
    rows = {name: torch.cat([s[name] for s in singles]) for name in singles[0]}
    truth = torch.cat([t.flatten() for t in clipped_sum(rows, bound).values()])
    for budget in (*BUDGETS, "auto"):
        assert float((total(examples, bound, budget) - truth).norm()) < 1e-5 * len(examples) * bound


def test_an_empty_batch_sums_to_zero(total: Any, model: nn.Module) -> None:
    """D2."""
    found = total([], 1.0, 100)
    assert found.shape == (sum(p.numel() for p in model.parameters()),)
    assert not found.any()


def test_every_example_is_processed_once(model: nn.Module, examples: Any) -> None:
    """D3: with micro-batches far smaller than the logical one, in whatever order."""
    seen: list[tuple[int, ...]] = []

    def noting(batch: list[dict[str, Any]]) -> Any:
        seen.extend(tuple(e["input_ids"]) for e in batch)
        return collate(batch)

    for budget in BUDGETS:
        seen.clear()
        made = Accumulator(model, loss, trainable(model), 1.0, budget)
        _, stats = made.sum(LogicalBatch(examples, noting))
        assert sorted(seen) == sorted(tuple(e["input_ids"]) for e in examples)
        assert len(stats.losses) == len(stats.sq_norms) == len(examples)


def test_a_search_cuts_anew_and_gives_the_same_sum(total: Any, examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: in the middle of a logical batch, whatever the clock says."""
    monkeypatch.setattr("dpft.engine.token_budget.FIRST", 16)
    monkeypatch.setattr("dpft.engine.token_budget.TRIES", 1)
    expected = total(examples, 0.5, 40)
    for gain in (0.0, 1e9):  # every try is a gain; the second is none
        monkeypatch.setattr("dpft.engine.token_budget.GAIN", gain)
        assert float((total(examples, 0.5, "auto") - expected).norm()) < 1e-5 * len(examples) * 0.5


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_running_out_of_memory_gives_the_same_sum(
    total: Any, examples: Any, failing: int, kind: type[Exception]
) -> None:
    """G3: the failure comes in the n-th micro-batch, before or after its forward pass."""
    calls = 0

    def starved(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        values = loss(model, batch)
        if calls == failing + 1:
            raise kind("simulated")
        return values

    expected = total(examples, 0.5, 40)
    assert float((total(examples, 0.5, 40, starved) - expected).norm()) < 1e-5 * len(examples) * 0.5
    assert calls > failing + 1


def test_memory_for_few_tokens_at_a_time_is_found(total: Any, examples: Any) -> None:
    """G3: the budget halves until it fits, and no example is lost."""

    def small_machine(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if batch["input_ids"].numel() > 30:
            raise torch.OutOfMemoryError("simulated")
        return loss(model, batch)

    expected = total(examples, 0.5, 40)
    assert float((total(examples, 0.5, 10_000, small_machine) - expected).norm()) < 1e-5 * len(examples) * 0.5


def test_an_example_that_never_fits_is_an_error_that_says_what_to_do(total: Any, examples: Any) -> None:
    """G3: it must not be left out in silence."""

    def tiny_machine(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if batch["input_ids"].shape[1] > 20:
            raise torch.OutOfMemoryError("simulated")
        return loss(model, batch)

    with pytest.raises(TrainingError, match="single example"):
        total(examples, 0.5, 10_000, tiny_machine)


def test_the_engine_draws_once_and_charges_once_when_memory_runs_out(bench: Any, counting: Any) -> None:
    """G3, C1, D3: no redraw, one noise draw, one step in the ledger."""
    data = [{"x": torch.full((4,), 0.1 * i)} for i in range(12)]
    failures = 2  # none while the preflight runs

    def starved(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        nonlocal failures
        if len(batch["x"]) > 3 and failures < 2:
            failures += 1
            raise torch.OutOfMemoryError("simulated")
        return bench.direct_loss(model, batch)

    plan = bench.plan(sample_rate=0.5, expected_batch=6, steps=3)
    engine = bench.engine(bench.Direct(4), plan, loss=starved, words=counting, token_budget=64 * 12)
    engine.preflight(synthetic_like(bench.collate([data[0]])))
    failures, asked_in_steps = 0, []
    for batch in engine.batches(data, bench.collate):
        drawn = len(counting.requests)
        engine.step(batch)
        asked_in_steps.append(counting.requests[drawn:])
    assert failures == 2
    assert asked_in_steps == [[4]] * 3  # noise for 4 coordinates, and no second draw of the members
    assert engine.steps_charged == 3


def test_a_loss_that_mixes_the_batch_is_refused(bench: Any) -> None:
    """A3, A8: a mean over the batch, or a loss that sees its neighbours."""
    for mixing in (
        lambda m, b: m(b["x"]).mean().expand(len(b["x"])),
        lambda m, b: m(b["x"] - b["x"].mean(dim=0)),
    ):
        engine = bench.engine(bench.Direct(4), bench.plan(), loss=mixing)
        with pytest.raises(PrivacyError):
            next(engine.batches([{"x": torch.randn(4)}] * 5, bench.collate))
        assert engine.steps_charged == 0


def test_the_instrument_fires_on_a_coupled_model(total: Any, model: nn.Module, examples: Any) -> None:
    """LOO on a planted fault: the loss is centred over its micro-batch, and the preflight is not asked."""

    def centred(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["input_ids"], batch["mask"])
        logits = logits - logits.detach().mean(dim=0) * 10
        return F.cross_entropy(logits, batch["labels"], reduction="none")

    bound = 0.01
    whole = total(examples, bound, 10_000, centred)
    moved = [
        float((whole - total(examples[:i] + examples[i + 1 :], bound, 10_000, centred)).norm())
        for i in range(len(examples))
    ]
    assert max(moved) > bound * (1 + ROOM)
