"""What a pruned model learns: the formulas by hand, and nothing from padding."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpft.models.distil import (
    IGNORED,
    Vocabulary,
    causal_loss,
    hidden_states_loss,
    language_loss,
    masked,
    masked_loss,
)


def by_hand(logits: Tensor, labels: Tensor, taught: Tensor, temperature: float = 2.0) -> float:
    """1/2 cross-entropy + 1/2 T^2 KL(teacher | student), one place after the other."""
    places = [(b, t) for b in range(labels.shape[0]) for t in range(labels.shape[1]) if labels[b, t] != IGNORED]
    total = 0.0
    for b, t in places:
        task = -math.log(torch.softmax(logits[b, t], 0)[labels[b, t]])
        p, q = torch.softmax(taught[b, t] / temperature, 0), torch.softmax(logits[b, t] / temperature, 0)
        total += 0.5 * task + 0.5 * temperature**2 * float((p * (p / q).log()).sum())
    return total / len(places)


def test_half_task_half_distillation() -> None:
    g = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 3, 5, generator=g), torch.randn(2, 3, 5, generator=g)
    labels = torch.tensor([[1, IGNORED, 4], [IGNORED, 0, 2]])
    assert float(language_loss(logits, labels, taught)) == pytest.approx(by_hand(logits, labels, taught), rel=1e-5)
    task = float(language_loss(logits, labels, None))
    assert float(language_loss(logits, labels, logits)) == pytest.approx(task / 2)  # as the teacher: the KL is zero


class Table(nn.Module):
    """A language model whose logits depend on its own token alone, and an encoder with three layers of states."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(9, 9, generator=g))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> Any:
        x = self.table[input_ids]
        return SimpleNamespace(logits=x, hidden_states=(x, x.sin(), x.cos()))


IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}


def test_the_next_token_of_real_tokens_alone() -> None:
    student, teacher = Table(0), Table(1)
    labels = torch.tensor([[4, 5, 6], [8, IGNORED, IGNORED]])
    logits, taught = student.table[IDS[:, :-1]].detach(), teacher.table[IDS[:, :-1]].detach()
    found = causal_loss(distil=True)(student, teacher, BATCH)
    assert float(found.detach()) == pytest.approx(by_hand(logits, labels, taught), rel=1e-5)
    found.backward()
    assert teacher.table.grad is None


def test_hidden_states_are_compared_on_real_tokens_block_by_block() -> None:
    student, teacher = Table(0), Table(1)
    rows = IDS[IDS > 0]
    s, t = student.table[rows].detach(), teacher.table[rows].detach()
    each = [(f(s) - f(t)).square().sum() / f(t).square().sum() for f in (torch.sin, torch.cos)]
    assert float(hidden_states_loss(student, teacher, BATCH).detach()) == pytest.approx(float(sum(each)) / 2, rel=1e-5)
    assert float(hidden_states_loss(teacher, teacher, BATCH).detach()) == 0.0


def test_masking_hides_as_bert_does() -> None:
    """15 % chosen; of these 80 % hidden, 10 % drawn, 10 % left; never padding, never special tokens."""
    ids = torch.randint(3, 1000, (200, 500), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 1
    mask = (torch.arange(500) < 400).long().expand_as(ids)
    hidden, labels = masked(ids, mask, Vocabulary(2, (0, 1, 2), 1000), torch.Generator().manual_seed(1))
    chosen = labels != IGNORED
    assert not chosen[:, 0].any()
    assert not chosen[:, 400:].any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(hidden[~chosen], ids[~chosen])
    assert float(chosen[:, 1:400].double().mean()) == pytest.approx(0.15, abs=0.005)
    assert float((hidden == 2)[chosen].double().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((hidden == ids)[chosen].double().mean()) == pytest.approx(0.1, abs=0.02)


def test_a_short_text_has_something_to_predict() -> None:
    loss = masked_loss(Vocabulary(2, (0, 1, 2), 9), torch.Generator().manual_seed(0), distil=True)
    for _ in range(20):
        value = loss(Table(0), Table(1), {"input_ids": torch.tensor([[1, 5]]), "attention_mask": torch.ones(1, 2)})
        assert torch.isfinite(value)
