"""A5: what padding changes is what neighbours change; the preflight sees it, on models that are padded right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpft.engine.padding import without_padding
from dpft.engine.preflight import preflight
from dpft.errors import PrivacyError
from dpft.models.losses import causal_lm_loss
from dpft.peft import LoRA, attach

D, V = 16, 11


class Pooled(nn.Module):
    """Embeds tokens and pools them: over all places, or over those that are tokens."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.table, self.head, self.pool = nn.Embedding(V, D), nn.Linear(D, 3), pool

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, m = self.table(ids), mask.unsqueeze(-1)
        pooled = {
            "mean of all": lambda: x.mean(dim=1),
            "mean of tokens": lambda: (x * m).sum(dim=1) / m.sum(dim=1),
            "maximum of all": lambda: x.amax(dim=1),
            "maximum of tokens": lambda: x.masked_fill(m == 0, -torch.inf).amax(dim=1),
            "last place": lambda: x[:, -1],
        }[self.pool]()
        logits: Tensor = self.head(pooled)
        return logits


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"], reduction="none")


def batch(side: str = "right") -> dict[str, Tensor]:
    mask = (torch.arange(5) < torch.tensor([5, 3, 2])[:, None]).long()
    mask = mask if side == "right" else mask.flip(1)
    ids = torch.randint(1, V, (3, 5), generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pool", ["mean of all", "maximum of all", "last place"])
def test_pooling_over_padding_is_found(pool: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with pytest.raises(PrivacyError, match="how long its neighbours are"):
        preflight(Pooled(pool).to(dtype), loss, batch())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pool", ["mean of tokens", "maximum of tokens"])
def test_pooling_over_tokens_passes(pool: str, side: str) -> None:
    torch.manual_seed(0)
    preflight(Pooled(pool), loss, batch(side))


def test_a_batch_that_says_nothing_of_padding_passes() -> None:
    torch.manual_seed(0)

    def unmasked(model: nn.Module, batch: Any) -> Tensor:
        return loss(model, {**batch, "attention_mask": torch.ones_like(batch["input_ids"])})

    preflight(Pooled("mean of all"), unmasked, {k: v for k, v in batch().items() if k != "attention_mask"})


@pytest.mark.parametrize(("side", "passes"), [("right", True), ("left", False)])
def test_positions_that_count_padding_are_found(side: str, passes: bool) -> None:
    """GPT-2 numbers places, so on the left padding shifts every token, unless position_ids say otherwise."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=V, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    torch.manual_seed(0)
    model = attach(GPT2LMHeadModel(config).double().eval(), LoRA(rank=2))
    found = batch(side)
    found["labels"] = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    numbered = {**found, "position_ids": (found["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)}
    preflight(model, causal_lm_loss, numbered)
    if passes:
        preflight(model, causal_lm_loss, found)
    else:
        with pytest.raises(PrivacyError, match="position_ids"):
            preflight(model, causal_lm_loss, found)


@given(
    tokens=st.lists(st.booleans(), min_size=1, max_size=9).filter(any),
    labels=st.sampled_from(["class", "tokens", "target"]),
    decoder=st.booleans(),
)
def test_cutting_keeps_exactly_the_tokens(tokens: list[bool], labels: str, decoder: bool) -> None:
    T = len(tokens)
    mask = torch.tensor([tokens]).long()
    target = {"class": torch.tensor([1]), "tokens": torch.arange(T)[None], "target": torch.arange(T + 1)[None]}[labels]
    example = {"input_ids": torch.arange(T)[None], "attention_mask": mask, "labels": target, "other": torch.ones(1, T)}
    found = without_padding(example, decoder=decoder)
    here = [i for i, token in enumerate(tokens) if token]
    assert found["input_ids"].tolist() == [here]
    assert found["attention_mask"].tolist() == [[1] * len(here)]
    assert torch.equal(found["other"], example["other"])
    cut = labels == "tokens" and not decoder
    assert torch.equal(found["labels"], target[:, here] if cut else target)
