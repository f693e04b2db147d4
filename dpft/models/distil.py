"""What a pruned model learns from the dense one it was made of (Zafrir et al. 2021, arXiv 2111.05754).

    language model   1/2 task + 1/2 T^2 KL(teacher | student), logits over T = 2, on the tokens that have a prediction
    encoder alone    mean over blocks of |h - h'|^2 / |h'|^2 over all tokens' hidden states h, h' the teacher's

The task is the model's own: masked tokens (15 %: 80 % hidden, 10 % random, 10 % as they are) or the next token. An
encoder that was saved without a language-model head has no task; what its blocks give is all there is to match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 2.0
IGNORED = -100
Objective = Literal["masked-lm", "causal-lm", "hidden-states"]
Batch = Mapping[str, Tensor]  # input_ids and attention_mask [B, T]
DistilLoss = Callable[[nn.Module, nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Vocabulary:
    """What masking has to know: the mask's id, the ids that are never masked, how many there are."""

    mask: int
    special: tuple[int, ...]
    size: int


def hidden_states_loss(student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """Scalar; the embeddings, which both share, are left out."""
    with torch.no_grad():
        wanted = teacher(**batch, output_hidden_states=True).hidden_states[1:]
    found = student(**batch, output_hidden_states=True).hidden_states[1:]
    real = batch["attention_mask"].unsqueeze(-1)
    each = [((h - t).square() * real).sum() / (t.square() * real).sum() for h, t in zip(found, wanted, strict=True)]
    return torch.stack([e.float() for e in each]).mean()


def language_loss(logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
    """Task and distillation on the places where ``labels`` [B, T] are not IGNORED; ``logits``, ``taught`` [B, T, V].

    ``taught`` None: the task alone."""
    here = labels != IGNORED
    task = F.cross_entropy(logits[here].float(), labels[here])
    if taught is None:
        return task
    found = F.log_softmax(logits[here].float() / TEMPERATURE, dim=-1)
    wanted = F.log_softmax(taught[here].float() / TEMPERATURE, dim=-1)
    apart = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return 0.5 * task + 0.5 * TEMPERATURE**2 * apart


def causal_loss(*, distil: bool) -> DistilLoss:
    """Each token from those before it."""

    def loss(student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)[:, 1:]
        with torch.no_grad():
            taught = teacher(**batch).logits[:, :-1] if distil else None
        return language_loss(student(**batch).logits[:, :-1], labels, taught)

    return loss


def masked_loss(vocabulary: Vocabulary, generator: torch.Generator, *, distil: bool) -> DistilLoss:
    """Masked tokens, drawn by ``generator``."""

    def loss(student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
        ids, labels = masked(batch["input_ids"], batch["attention_mask"], vocabulary, generator)
        inputs: dict[str, Any] = {**batch, "input_ids": ids}
        with torch.no_grad():
            taught = teacher(**inputs).logits if distil else None
        return language_loss(student(**inputs).logits, labels, taught)

    return loss


def masked(ids: Tensor, mask: Tensor, vocabulary: Vocabulary, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids with some hidden, and labels that are IGNORED elsewhere; at least one token is chosen."""
    device, ids, mask = ids.device, ids.cpu(), mask.cpu()
    free = (mask > 0) & ~torch.isin(ids, torch.tensor(vocabulary.special))
    order = torch.rand(ids.shape, generator=generator).masked_fill(~free, 2.0)
    chosen = (order < 0.15) | (order == order.min())
    how = torch.rand(ids.shape, generator=generator)
    drawn = torch.randint(0, vocabulary.size, ids.shape, generator=generator)
    hidden = torch.where(how < 0.8, vocabulary.mask, torch.where(how < 0.9, drawn, ids))
    return torch.where(chosen, hidden, ids).to(device), torch.where(chosen, ids, IGNORED).to(device)
