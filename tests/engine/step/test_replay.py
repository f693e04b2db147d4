"""REPLAY: record on a data set, replay on its neighbour with what was released frozen.

Then the mechanism's inputs may differ by the sensitivity, and everything else must be the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.engine.accumulate import Accumulator
from dpft.engine.keystream import InsecureSeededWords
from dpft.engine.noise import GriddedGaussian, Noise, drawn_beside
from dpft.engine.scaling import PrivatisedScale


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.body = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.LayerNorm(16))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return batch["here"] * F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


@dataclass
class Tape:
    inputs: list[Tensor] = field(default_factory=list)
    released: list[Tensor] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    ledger: bytes = b""
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))


def go(
    bench: Any, data: list[Any], plan: Any, frozen: Tape | None, name: str, scale: PrivatisedScale | None = None
) -> Tape:
    tape = Tape()
    source = InsecureSeededWords(8)
    with pytest.MonkeyPatch.context() as patch:
        release, words = GriddedGaussian.release, InsecureSeededWords.words

        def noting(self: Any, total: Tensor, noise: Noise) -> Tensor:
            tape.inputs.append(total.clone())
            made = release(self, total, noise)
            tape.released.append(made if frozen is None else frozen.released[len(tape.released)])
            return tape.released[-1].clone()

        def counting(self: Any, n: int) -> Tensor:
            tape.requests.append(n)
            return words(self, n)

        patch.setattr(GriddedGaussian, "release", noting)
        patch.setattr(InsecureSeededWords, "words", counting)
        model = Deep()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        path = bench.folder / f"{name}.jsonl"
        with bench.engine(
            model, plan, loss=loss, optimizer=optimizer, words=source, ledger=path, token_budget=64 * 4, scale=scale
        ) as engine:
            bench.train(engine, data)
    tape.ledger = path.read_bytes()
    tape.weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return tape


def records(n: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(10)
    return [
        {"x": torch.randn(5, generator=g) * 3, "y": torch.tensor(i % 2), "here": torch.tensor(1.0)} for i in range(n)
    ]


# float32 sums within a micro-batch: the margin of 2^-13 in the clip holds their rounding, so C is C.
CLIP = 0.3


@pytest.mark.parametrize("victim", [0, 7, 19])
@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_a_blank_in_place_of_a_record_moves_the_inputs_by_at_most_the_clip(
    bench: Any, victim: int, rate: float
) -> None:
    """B1, B5, C1, D3, D5, E1, F2 under zero-out: 20 records, one of them blanked."""
    plan = bench.plan(examples=20, expected_batch=int(20 * rate), steps=12, clip=CLIP)
    data = records(20)
    neighbour = [dict(e) for e in data]
    neighbour[victim]["here"] = torch.tensor(0.0)
    first = go(bench, data, plan, None, "first")
    second = go(bench, neighbour, plan, first, "second")
    moved = [float((a - b).norm()) for a, b in zip(first.inputs, second.inputs, strict=True)]
    assert max(moved) <= CLIP
    assert max(moved) > 0.9 * CLIP  # the record was drawn, and clipped
    assert 0 < sum(m > 0 for m in moved) <= 12
    assert first.requests == second.requests
    assert first.ledger == second.ledger
    assert torch.equal(first.weights, second.weights)


def test_one_record_more_moves_the_inputs_by_at_most_the_clip(bench: Any) -> None:
    """D5, E1, F2 under add/remove: the last record is missing, everything public is as before."""
    plan = bench.plan(sample_rate=1.0, expected_batch=15, steps=12, clip=CLIP)
    first = go(bench, records(20), plan, None, "first")
    second = go(bench, records(20)[:-1], plan, first, "second")
    assert max(float((a - b).norm()) for a, b in zip(first.inputs, second.inputs, strict=True)) <= CLIP
    assert (first.requests, first.ledger) == (second.requests, second.ledger)
    assert torch.equal(first.weights, second.weights)


@pytest.mark.parametrize(("clipping", "scaled"), [("auto-s", False), ("flat", True), ("auto-s", True)])
def test_automatic_clipping_and_a_scale_keep_the_sensitivity(bench: Any, clipping: str, scaled: bool) -> None:
    """B1, E1 under zero-out: and the scale, frozen with what was released, is the same for both neighbours."""
    plan = bench.plan(examples=20, expected_batch=20, steps=12, clip=CLIP, clipping=clipping)
    data, size = records(20), sum(p.numel() for p in Deep().parameters())
    neighbour = [dict(e) for e in data]
    neighbour[7]["here"] = torch.tensor(0.0)
    scales = [PrivatisedScale(size, plan, every=2) if scaled else None for _ in range(2)]
    first = go(bench, data, plan, None, "first", scales[0])
    second = go(bench, neighbour, plan, first, "second", scales[1])
    moved = [float((a - b).norm()) for a, b in zip(first.inputs, second.inputs, strict=True)]
    assert 0.9 * CLIP < max(moved) <= CLIP
    assert (first.requests, first.ledger) == (second.requests, second.ledger)
    assert torch.equal(first.weights, second.weights)
    if scales[0] and scales[1]:
        assert torch.equal(scales[0].scale, scales[1].scale)
        assert float(scales[0].scale.max() / scales[0].scale.min()) > 1.5  # it did something


@pytest.mark.parametrize("fault", ["clip of the mean", "skips empty sums"])
def test_the_instrument_fires(bench: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """REPLAY on planted faults: sensitivity doubled, and control flow that depends on the records."""
    plan = bench.plan(examples=20, expected_batch=20, steps=4, clip=CLIP)
    data = records(20)
    neighbour = [dict(e) for e in data]
    neighbour[3]["here"] = torch.tensor(0.0)
    real = Accumulator.sum
    if fault == "clip of the mean":

        def doubled(self: Accumulator, batch: Any) -> Any:
            total, stats = real(self, batch)
            return total * 2, stats

        monkeypatch.setattr(Accumulator, "sum", doubled)
    else:

        def peeking(self: Accumulator, batch: Any) -> Any:
            if any(float(e["here"]) == 0 for e in batch.examples):
                InsecureSeededWords.words(InsecureSeededWords(0), 1)
            return real(self, batch)

        monkeypatch.setattr(Accumulator, "sum", peeking)
    first = go(bench, data, plan, None, "first")
    second = go(bench, neighbour, plan, first, "second")
    moved = max(float((a - b).norm()) for a, b in zip(first.inputs, second.inputs, strict=True))
    assert moved > CLIP or first.requests != second.requests


def test_noise_drawn_while_the_sum_is_taken_trains_the_same(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """C1, E2: as where a GPU takes the sum, and the processor is idle."""
    plan = bench.plan(examples=20, expected_batch=8, steps=6, clip=CLIP)
    first = go(bench, records(20), plan, None, "first")
    monkeypatch.setattr("dpft.engine.engine.drawn_beside", lambda noise, *, idle: drawn_beside(noise, idle=not idle))
    second = go(bench, records(20), plan, None, "second")
    assert torch.equal(first.weights, second.weights)
    assert (first.requests, first.ledger) == (second.requests, second.ledger)
