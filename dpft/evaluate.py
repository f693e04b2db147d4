"""How well a model does on records that did not train. Computed without noise: public only if those records are.

classification         accuracy
multilabel             share of labels that are right; F1 over all labels together
regression             root mean squared error; correlation (Pearson)
token-classification   accuracy over tagged words; F1, the mean over tags
causal-lm, seq2seq     perplexity: exp of the mean over records of their mean loss a token
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpft.config.task_fields import LANGUAGE_TASKS, Task
from dpft.engine.microbatch import Collate, Length, cut, token_length
from dpft.models.labels import NO_LABEL
from dpft.models.losses import LOSSES
from dpft.models.precision import products_in
from dpft.per_sample.batches import to_device


def scores(
    model: nn.Module,
    examples: Sequence[Any],
    collate: Collate,
    token_budget: int,
    compute: torch.dtype = torch.float32,
    length: Length = token_length,
    task: Task = "classification",
) -> dict[str, float]:
    """The task's figures on ``examples`` (at least one), by name."""
    batches = _batches(model, examples, collate, token_budget, length)
    if task in LANGUAGE_TASKS:
        return {"perplexity": _perplexity(model, batches, compute, task)}
    found = [_flat(*_outputs(model, batch, compute)) for batch in batches]
    return _FIGURES[task](torch.cat([logits for logits, _ in found]), torch.cat([labels for _, labels in found]))


def _batches(
    model: nn.Module, examples: Sequence[Any], collate: Collate, budget: int, length: Length
) -> Iterator[dict[str, Tensor]]:
    device = next(model.parameters()).device
    for piece in cut(range(len(examples)), [length(e) for e in examples], budget):
        yield to_device(collate([examples[i] for i in piece]), device)


@torch.no_grad()
def _perplexity(model: nn.Module, batches: Iterator[dict[str, Tensor]], compute: torch.dtype, task: Task) -> float:
    losses = []
    for batch in batches:
        with products_in(compute, batch["labels"].device):
            losses.append(LOSSES[task](model, batch).double().cpu())
    return math.exp(min(700.0, float(torch.cat(losses).mean())))


@torch.no_grad()
def _outputs(model: nn.Module, batch: dict[str, Tensor], compute: torch.dtype) -> tuple[Tensor, Tensor]:
    with products_in(compute, batch["labels"].device):
        outputs: Tensor = model(**{name: t for name, t in batch.items() if name != "labels"})
    return outputs.float().cpu(), batch["labels"].cpu()


def _flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of tokens, those that are tagged: [tagged, K] and [tagged]; all else as it is."""
    if logits.dim() < 3:
        return logits, labels
    here = labels != NO_LABEL
    return logits[here], labels[here]


def _classes(logits: Tensor, labels: Tensor) -> dict[str, float]:
    return {"accuracy": float((logits.argmax(dim=-1) == labels).double().mean())}


def _several(logits: Tensor, labels: Tensor) -> dict[str, float]:
    found, truth = logits > 0, labels > 0.5
    return {"labels right": float((found == truth).double().mean()), "F1": _f1(found, truth)}


def _numbers(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    found, truth = outputs[:, 0].double(), labels.double()
    figures = {"root mean squared error": float((found - truth).square().mean().sqrt())}
    apart, from_mean = found - found.mean(), truth - truth.mean()
    scale = float(apart.norm() * from_mean.norm())
    return {**figures, "correlation": float(apart @ from_mean) / scale if scale > 0 else 0.0}


def _tags(logits: Tensor, labels: Tensor) -> dict[str, float]:
    found = logits.argmax(dim=-1)
    each = [_f1(found == tag, labels == tag) for tag in sorted(set(labels.tolist()))]
    return {**_classes(logits, labels), "F1, mean over tags": sum(each) / len(each) if each else 0.0}


def _f1(found: Tensor, truth: Tensor) -> float:
    """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN); 1 where there is nothing to find and none was."""
    both, either = int((found & truth).sum()), int(found.sum()) + int(truth.sum())
    return 2 * both / either if either else 1.0


_FIGURES: Mapping[Task, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "classification": _classes,
    "multilabel": _several,
    "regression": _numbers,
    "token-classification": _tags,
}
