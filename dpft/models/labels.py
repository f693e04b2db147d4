"""Labels that fit a model's output, and the decoder inputs that are made of them.

Shape and type are checked always. Values are looked at only where that costs no wait for a device, and no message
quotes one: labels are private.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import InputError

NO_LABEL = -100
"""What marks a position that is not to be predicted, as in transformers."""


def labels_in(batch: Mapping[str, Tensor]) -> Tensor:
    """The batch's labels."""
    if "labels" not in batch:
        found = ", ".join(sorted(batch)) or "nothing"
        raise InputError(f"Expected labels in the batch, found {found}; let collate call them `labels`.")
    return batch["labels"]


def classes(labels: Tensor, shape: torch.Size, count: int | None, *, gaps: bool = False) -> Tensor:
    """The labels as int64: whole numbers of that shape, below ``count`` where that is known; ``gaps`` allows
    ``NO_LABEL``. Any integer type will do, since torch's losses take only some."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise _wrong("of whole numbers", labels.dtype, "let collate make them int64, or choose the loss that fits them")
    _fits(labels, shape)
    labels = labels.long()
    if count is not None and _free_to_read(labels):
        known = ((labels >= 0) & (labels < count)) | (labels == NO_LABEL if gaps else False)
        if not known.all():
            missing = f" or {NO_LABEL} for none" if gaps else ""
            raise _wrong(f"from 0 to {count - 1}{missing}", "another", "check the labels' names and order")
    return labels


def answers(labels: Tensor, logits: Tensor) -> Tensor:
    """Yes-or-no labels of any real type, as numbers of the logits' type and shape."""
    _fits(labels, logits.shape)
    if labels.is_complex() or (_free_to_read(labels) and not ((labels == 0) | (labels == 1)).all()):
        raise _wrong(
            "that are 0 or 1", "another", "make them so in collate; a label that is not known has no value here"
        )
    return labels.to(logits.dtype)


def amounts(labels: Tensor, outputs: Tensor) -> Tensor:
    """Real numbers of the outputs' type and shape [B, K]; one output's may come as [B]."""
    if not labels.is_floating_point():
        raise _wrong(
            "of real numbers", labels.dtype, "let collate make them float32, or choose the loss that fits them"
        )
    labels = labels.unsqueeze(1) if labels.dim() == 1 and outputs.shape[1:] == (1,) else labels
    _fits(labels, outputs.shape)
    return labels.to(outputs.dtype)


def sequences(labels: Tensor, what: str) -> Tensor:
    """Labels that have an axis of tokens."""
    if labels.dim() != 2:
        raise _wrong(f"of shape {what}", tuple(labels.shape), "check collate, or choose the loss that fits the task")
    return labels


def decoder_inputs(model: nn.Module, labels: Tensor) -> Tensor:
    """The target [B, S] shifted right behind the model's own start token, padding where there is no label.

    By the model's own method where it has one: mBART, say, starts each example with that example's last token."""
    model = _with_config(model)
    config: Any = getattr(model, "config", None)
    start: Any = getattr(config, "decoder_start_token_id", None)
    pad: Any = getattr(config, "pad_token_id", None)
    own: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if pad is None or (start is None and own is None):
        raise _no_start()
    # Ids that the decoder could not embed must be found before it tries.
    vocabulary = getattr(getattr(config, "decoder", config), "vocab_size", None)
    labels = classes(sequences(labels, "[B, S]"), labels.shape, vocabulary, gaps=True)
    if own is None:
        first = torch.full_like(labels[:, :1], start)
        return torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == NO_LABEL, pad)], dim=1)
    # Of an example without a target mBART would look up token -1. Such an example's loss is zero whatever is read.
    nothing = (labels == NO_LABEL).all(dim=1, keepdim=True)
    try:
        shifted: Tensor = own(labels.masked_fill(nothing, int(pad == 0)))
    except (TypeError, ValueError) as error:  # how transformers' methods miss a start token
        raise _no_start() from error
    return shifted


def _with_config(model: nn.Module) -> nn.Module:
    """The outermost module that has a configuration: what wraps a model (Opacus' GradSampleModule) has none."""
    return next((m for m in model.modules() if hasattr(m, "config")), model)


def _fits(labels: Tensor, shape: torch.Size) -> None:
    if labels.shape != shape:
        remedy = "check collate, and the number of labels that the model was built for"
        raise _wrong(f"of shape {tuple(shape)} to fit the model's output", tuple(labels.shape), remedy)


def _free_to_read(labels: Tensor) -> bool:
    return labels.device.type == "cpu"


def _wrong(expected: str, found: object, remedy: str) -> InputError:
    return InputError(f"Expected labels {expected}, found {found}; {remedy}.")


def _no_start() -> InputError:
    return InputError(
        "Expected a model whose configuration has decoder_start_token_id and pad_token_id, found neither or one; set "
        "them, since the decoder's first input and its padding are these."
    )
