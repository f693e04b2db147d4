"""F2, A5: the batch that the engine makes for its own preflight holds nothing real, and is padded as real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import dpft
from dpft.engine.synthetic import like_one_record, synthetic_like
from dpft.errors import PrivacyError
from dpft.peft import TokenRows, attach

D, V, SPECIAL = 16, 31, {0, 1, 2}


class Pooled(nn.Module):
    """Embeds tokens and takes their mean: over all places, over tokens, or the last place alone."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.table, self.head, self.pool = nn.Embedding(V, D), nn.Linear(D, 3), pool

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, m = self.table(ids), mask.unsqueeze(-1)
        if self.pool == "last place":
            found = x[:, -1]
        else:
            found = x.mean(dim=1) if self.pool == "all" else (x * m).sum(dim=1) / m.sum(dim=1)
        logits: Tensor = self.head(found)
        return logits


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"], reduction="none")


def collate(records: list[dict[str, Any]], side: str = "right", fill: int = 0) -> dict[str, Tensor]:
    T = max(len(r["input_ids"]) for r in records)
    rows = [(r["input_ids"], [fill] * (T - len(r["input_ids"]))) for r in records]
    ids = [[*pad, *own] if side == "left" else [*own, *pad] for own, pad in rows]
    mask = [[0] * len(p) + [1] * len(o) if side == "left" else [1] * len(o) + [0] * len(p) for o, p in rows]
    labels = torch.tensor([r["labels"] for r in records])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": labels}


RECORDS = [{"input_ids": list(range(3, 3 + n)), "labels": n % 3} for n in (9, 4, 7)]


@pytest.mark.parametrize(
    ("pool", "side", "private"),
    [("all", "right", False), ("tokens", "right", True), ("last place", "left", True), ("last place", "right", False)],
)
def test_engine_finds_what_looks_at_padding_by_itself(pool: str, side: str, private: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Pooled(pool)
    plan = dpft.plan(noise_multiplier=1.0, delta=1e-5, sample_rate=0.5, expected_batch=2, steps=1, clip=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with dpft.PrivateEngine(model, optimizer, plan, loss=loss, ledger=tmp_path / "ledger.jsonl") as engine:
        batches = engine.batches(RECORDS, lambda records: collate(records, side))
        if private:
            engine.step(next(batches))
            return
        with pytest.raises(PrivacyError, match="how long its neighbours are"):
            next(batches)
        assert engine.steps_charged == 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_where_and_what_collate_makes_it(side: str) -> None:
    made = like_one_record(RECORDS[0], lambda records: collate(records, side, fill=7), nn.Identity())
    assert made["attention_mask"].sum(dim=1).tolist() == [9, 5, 9]
    padding = made["attention_mask"][1] == 0
    assert padding.tolist() == ([True] * 4 + [False] * 5 if side == "left" else [False] * 5 + [True] * 4)
    assert bool((made["input_ids"][1][padding] == 7).all())


def test_collate_that_can_not_pad_still_gives_a_padded_batch() -> None:
    records = [{**RECORDS[0], "attention_mask": torch.ones(9, dtype=torch.long)}]
    records = [{key: torch.as_tensor(value) for key, value in r.items()} for r in records]
    made = like_one_record(records[0], torch.utils.data.default_collate, nn.Identity())
    assert made["attention_mask"].tolist() == [[1] * 9, [1] * 5 + [0] * 4, [1] * 9]


def test_record_of_one_token_and_records_of_another_kind() -> None:
    made = like_one_record({"input_ids": [3], "labels": 1}, collate, nn.Identity())
    assert made["attention_mask"].tolist() == [[1]] * 3
    assert like_one_record(torch.ones(4), torch.stack, nn.Identity()).shape == (3, 4)


def test_ids_are_of_the_vocabulary_and_reach_the_rows_that_train() -> None:
    config = BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=D, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    made = like_one_record(RECORDS[0], collate, model)["input_ids"]
    tokens = made[made != 0]
    assert len(set(tokens.tolist())) > 2
    assert not SPECIAL & set(tokens.tolist())
    assert int(made.max()) < V
    model = attach(model, TokenRows((11, 29)))
    assert {11, 29} <= set(like_one_record(RECORDS[0], collate, model)["input_ids"].flatten().tolist())


def test_synthetic_batch_holds_nothing_of_the_real_one() -> None:
    """F2: structure, types and lengths alone; ids that any vocabulary has; no length equal to the batch."""
    real = {
        "input_ids": torch.full((1, 3), 777),
        "attention_mask": torch.zeros(1, 3, dtype=torch.long),
        "decoder_attention_mask": torch.zeros(1, 3, dtype=torch.long),
        "x": torch.full((1, 7), 777.0, dtype=torch.float64),
        "nested": [torch.full((1,), 777)],
    }
    real["attention_mask"][0, 0] = 1
    real["input_ids"][0, 1:] = 5  # what collate pads with
    made = synthetic_like(real)
    assert made["input_ids"].shape == (4, 3)
    assert made["x"].dtype == torch.float64
    assert set(made["input_ids"].flatten().tolist()) <= {0, 1, 5}
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert bool((made["decoder_attention_mask"] == 1).all())
    assert not any((t == 777).any() for t in (made["input_ids"], made["x"], made["nested"][0]))
