"""A paid mask's gradients are a mechanism like any other: sigma C of noise everywhere, C at most from one record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dpft
from dpft.engine.mask_release import MaskEngine
from dpft.models.classifier import TextClassifier
from dpft.peft.sparse_adapter import prunable

# The smallest tensor has 512 coordinates; 40 steps give 20,480 values, whose deviation has a relative standard error of
# 1/sqrt(2 * 20,480) = 0.5 %. So 3 % is six of them: 2e-9 a tensor.
STEPS, TOLERANCE = 40, 0.03


def gated_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A gate of 0 makes a record's gradient exactly zero; the preflight's made-up data opens it."""
    logits = model(batch["input_ids"], batch["attention_mask"])
    return batch["gate"] * nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def records(count: int, gate: float) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 23, (count, 5), generator=g)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(i % 2),
         "gate": torch.tensor(gate)}
        for i, row in enumerate(ids)
    ]  # fmt: skip


def adapted(mask_steps: int) -> tuple[TextClassifier, Any]:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=23, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = TextClassifier(BertModel(config), 2, "mean", None).eval()
    nn.init.normal_(model.head.weight)
    method = dpft.SparseAdapter(bottleneck=16, density=0.5, mask="snip", mask_steps=mask_steps)
    return dpft.attach(model, method, train=("head",)), method


def released(model: nn.Module, method: Any, data: list[Any], ledger: Path, **plan: Any) -> list[list[Tensor]]:
    """What each step adds to the sums, times the expected batch: of every layer's values, in order."""
    made = dpft.plan(delta=1e-5, sample_rate=1.0, expected_batch=6, steps=method.mask_steps + 1, **plan)
    layers, steps, before = prunable(model), [], None
    with MaskEngine(model, method, made, loss=gated_loss, ledger=ledger) as engine:
        engine.preflight(collate(records(3, 1.0)))
        for batch in engine.batches(data, collate):
            engine.step(batch)
            now = [engine._sum.state[layer.values]["sum"].double() for layer in layers]
            steps.append([6 * (b - a) for a, b in zip(before or [torch.zeros_like(n) for n in now], now, strict=True)])
            before = now
    return steps


def deviation(steps: list[list[Tensor]], layer: int) -> float:
    return float(torch.stack([step[layer] for step in steps]).square().mean().sqrt())


@pytest.mark.parametrize("clip", [0.2, 5.0])
def test_every_coordinate_gets_sigma_times_clip(clip: float, fast_path: Path) -> None:
    """STD: records without gradient; whole matrices are released, of which the mask keeps half."""
    model, method = adapted(STEPS)
    steps = released(model, method, records(9, 0.0), fast_path / "ledger", noise_multiplier=1.5, clip=clip)
    assert len(steps) == STEPS
    assert [len(part) for part in steps[0]] == [512] * 8
    for layer in range(8):
        assert abs(deviation(steps, layer) / (1.5 * clip) - 1) < TOLERANCE
    kept = torch.stack([torch.cat(step) for step in steps])
    assert (kept != 0).all(dim=0).sum() > 0.99 * kept.shape[1]  # no coordinate goes without
    off = torch.corrcoef(kept)[~torch.eye(STEPS, dtype=torch.bool)]
    assert off.abs().max() < 6 / kept.shape[1] ** 0.5  # C6: 780 pairs of standard error 1/sqrt(4096)


@pytest.mark.parametrize("clip", [1e-6, 0.1])
def test_one_record_moves_the_sum_by_the_clip_at_most(
    clip: float, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOO, noise off: at a clip far below all norms, where it is reached, and at one among them."""
    from dpft.engine import engine

    monkeypatch.setattr(engine.GriddedGaussian, "release", lambda _self, total, _words: total)
    model, method = adapted(1)
    data = [{**record, "gate": torch.tensor(10.0**i)} for i, record in enumerate(records(6, 1.0), -3)]

    def total(left_out: int) -> Tensor:
        rest = [record for i, record in enumerate(data) if i != left_out]
        (step,) = released(model, method, rest, fast_path / f"ledger{left_out}", noise_multiplier=1.0, clip=clip)
        return torch.cat(step)

    whole = total(-1)
    moved = torch.stack([(whole - total(i)).norm() for i in range(len(data))])
    assert (moved <= clip * (1 + 1e-6)).all()  # float32 sums of six vectors within the clip
    assert moved.max() > 0.98 * clip  # the bound is reached, but for the room left for rounding
    assert (moved < 0.5 * clip).any() == (clip == 0.1)
