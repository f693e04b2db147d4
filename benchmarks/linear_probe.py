"""What needs no fine-tuning: the majority class, and logistic regression on the frozen encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from common import Records
from torch import Tensor, nn

from dpft.engine.microbatch import cut, token_length
from dpft.models.classifier import TextClassifier
from dpft.run import build_model

_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the linear probe, times |W|^2 / 2, on the mean loss
_FOLDS = 5


def majority(records: Records) -> float:
    """Accuracy of always saying the class that is most frequent in training."""
    labels = [example["label"] for example in records.train]
    most = max(set(labels), key=labels.count)
    right = sum(int(example["label"] == most) for example in records.heldout)
    return right / len(records.heldout)


def linear_probe(records: Records) -> float:
    """Logistic regression on the frozen encoder's features, its penalty chosen by cross-validation."""
    model, _ = build_model(records.recipe, records.source)  # LoRA starts at zero: these are the encoder's own features
    budget = records.recipe.train.token_budget
    x, y = features(model, records.train, records.collate, budget)
    folds = torch.randint(_FOLDS, (len(y),), generator=torch.Generator().manual_seed(0))

    def validated(penalty: float) -> float:
        right = 0
        for fold in range(_FOLDS):
            inside, outside = folds != fold, folds == fold
            right += _right(fit_logistic(x[inside], y[inside], penalty), x[outside], y[outside])
        return right / len(y)

    probe = fit_logistic(x, y, max(_PENALTIES, key=validated))
    held = features(model, records.heldout, records.collate, budget)
    return _right(probe, *held) / len(records.heldout)


@torch.no_grad()
def features(model: TextClassifier, examples: Sequence[Any], collate: Any, budget: int) -> tuple[Tensor, Tensor]:
    """Pooled features [N, d] in float64 and labels [N], in the order of the cut."""
    rows, labels = [], []
    for piece in cut(range(len(examples)), [token_length(e) for e in examples], budget):
        batch = collate([examples[i] for i in piece])
        labels.append(batch.pop("labels"))
        rows.append(model.features(**batch).double())
    return torch.cat(rows), torch.cat(labels)


def fit_logistic(x: Tensor, y: Tensor, penalty: float) -> nn.Linear:
    """The minimiser of mean cross-entropy + penalty |W|^2 / 2, from zero by L-BFGS."""
    layer = nn.Linear(x.shape[1], int(y.max()) + 1, dtype=x.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + penalty * layer.weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer


def _right(layer: nn.Linear, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((layer(x).argmax(dim=1) == y).sum())
