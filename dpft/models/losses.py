"""Losses as vectors: one loss an example, a function of that example alone.

Never a mean over the batch and never divided by the batch's tokens: either would couple the examples, and an
example's gradient would no longer be its own. A batch is a dict of tensors with the examples first; all of it but
``labels`` goes to the model, which answers with logits or with an HF output that has them. B examples, T tokens,
K classes or outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.models.labels import NO_LABEL, amounts, answers, classes, decoder_inputs, labels_in, sequences

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, [B]; logits [B, K], labels [B] int. For texts and images alike."""
    labels, logits = labels_in(batch), _logits(model, batch, "[B, K]")
    return F.cross_entropy(logits, classes(labels, logits.shape[:1], logits.shape[1]), reduction="none")


def multilabel_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Binary cross-entropy of K yes-or-no labels, their mean, [B]; logits and labels [B, K]."""
    labels, logits = labels_in(batch), _logits(model, batch, "[B, K]")
    return F.binary_cross_entropy_with_logits(logits, answers(labels, logits), reduction="none").mean(dim=1)


def regression_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error, the mean over K outputs, [B]; outputs [B, K], labels [B, K], or [B] where K = 1."""
    labels, outputs = labels_in(batch), _logits(model, batch, "[B, K]")
    return (outputs - amounts(labels, outputs)).square().mean(dim=1)


def token_classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy over an example's own labelled tokens, [B]; logits [B, T, K], labels [B, T]."""
    labels, logits = labels_in(batch), _logits(model, batch, "[B, T, K]")
    return _token_mean(logits, classes(labels, logits.shape[:2], logits.shape[2], gaps=True))


def causal_lm_loss(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over an example's own next tokens, [B]; labels [B, T] are the tokens themselves.

    Logits in front of the text (a soft prompt's) predict nothing that counts and are left out, and so do those at
    padding: what is padded on the left would otherwise predict one token more than what is not."""
    labels, logits = sequences(labels_in(batch), "[B, T]"), _logits(model, batch, "[B, T, K]")
    logits = logits[:, max(0, logits.shape[1] - labels.shape[1]) :]
    labels = classes(labels, logits.shape[:2], logits.shape[2], gaps=True)
    return _token_mean(logits[:, :-1], _next_labels(batch, labels), label_smoothing)


def seq2seq_loss(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over an example's own target tokens, [B]; labels [B, S].

    The decoder reads the target shifted right behind the model's own start token."""
    labels = labels_in(batch)
    logits = _logits(model, {**batch, "decoder_input_ids": decoder_inputs(model, labels)}, "[B, S, K]")
    return _token_mean(logits, classes(labels, logits.shape[:2], logits.shape[2], gaps=True), label_smoothing)


LOSSES: Mapping[str, Loss] = {
    "classification": classification_loss,
    "multilabel": multilabel_loss,
    "regression": regression_loss,
    "token-classification": token_classification_loss,
    "causal-lm": causal_lm_loss,
    "seq2seq": seq2seq_loss,
    "image-classification": classification_loss,
}


def _next_labels(batch: Batch, labels: Tensor) -> Tensor:  # [B,T] -> [B,T-1]
    """The label of each place but the first, where a token stands in front of it."""
    mask = batch.get("attention_mask")
    following = labels[:, 1:]
    if not isinstance(mask, Tensor) or mask.shape != labels.shape:
        return following
    return following.masked_fill(mask[:, :-1] == 0, NO_LABEL)


def _logits(model: nn.Module, batch: Batch, axes: str) -> Tensor:
    """The model's logits with these axes, float32 or wider.

    Labels stay out: HF models would turn them into a batch mean."""
    out: Any = model(**{name: t for name, t in batch.items() if name != "labels"})
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    if logits.dim() != axes.count(",") + 1:  # else the losses might not be one an example
        raise InputError(
            f"Expected a model that gives logits {axes}, found shape {tuple(logits.shape)}; choose the loss of the "
            "task that the model was built for."
        )
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _token_mean(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:  # [B,T,K], [B,T] -> [B]
    """Mean cross-entropy over each example's own labelled positions; exactly 0 for an example without any."""
    losses = F.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=NO_LABEL, label_smoothing=label_smoothing
    )
    return losses.sum(dim=1) / (labels != NO_LABEL).sum(dim=1).clamp_min(1)
