"""Proof that padding is looked at by nothing: an example without its padding has the same loss and gradient.

How far an example is padded is decided by its neighbours, so what padding changes is what neighbours change. A
comparison of an example in a batch with the same padded row alone can't see that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import DpftError, PrivacyError
from dpft.per_sample.oracle import Loss, one_example

MASK = "attention_mask"
# What has one entry a token; "recorded" are the outputs that a cache brings (dpft/cache/replay.py).
PADDED = ("input_ids", MASK, "token_type_ids", "position_ids", "inputs_embeds", "special_tokens_mask", "recorded")


@torch.enable_grad()
def check_padding(model: nn.Module, loss: Loss, batch: Any, tolerance: float) -> None:
    """Compare each padded example of ``batch`` with itself cut to its own tokens, at ``tolerance`` (relative).

    A batch without an ``attention_mask`` [B, T] of zeros and ones says nothing of padding, and passes. Raises
    :class:`PrivacyError`."""
    mask = batch.get(MASK) if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return
    for i in (~(mask != 0).all(dim=1) & (mask != 0).any(dim=1)).nonzero().flatten().tolist():
        whole = {key: value[i : i + 1] for key, value in batch.items() if isinstance(value, Tensor)}
        before, truth = one_example(model, loss, whole)
        after, found = _alone(model, loss, whole)
        overall = float(torch.stack([g.double().norm() for g in truth.values()]).norm()) if truth else 0.0
        same = _close(after, before, tolerance, 0.0) and truth.keys() == found.keys()
        if not (same and all(_close(found[name], g, tolerance, overall) for name, g in truth.items())):
            raise PrivacyError(
                "An example without its padding has another loss or gradient than with it, so an example depends on "
                "how long its neighbours are. Mask the padding wherever tokens meet (attention, pooling, a maximum, "
                "the loss), and pad on the right or pass position_ids."
            )


def _alone(model: nn.Module, loss: Loss, whole: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients without the padding. Whether a tensor of the user's own has an entry a token is told by
    whether the loss works with it uncut."""
    decoder = has_decoder(model)
    try:
        return one_example(model, loss, without_padding(whole, decoder=decoder))
    except DpftError:
        raise
    except Exception:
        short = without_padding(whole, decoder=decoder, every=True)
        if all(short[key].shape == t.shape for key, t in whole.items() if key not in (*PADDED, "labels")):
            raise  # nothing else to cut
    return one_example(model, loss, short)


def without_padding(example: Mapping[str, Tensor], *, decoder: bool = False, every: bool = False) -> dict[str, Tensor]:
    """A batch of one, cut to the tokens under its mask. Labels are cut where there is one for each token.

    ``decoder``: the model has a decoder of its own, whose tokens the labels are, so they stay. ``every``: whatever is
    as long as the mask is cut, whatever its name."""
    mask = example[MASK]
    here, T = mask[0] != 0, mask.shape[1]

    def cut(key: str, value: Tensor) -> Tensor:
        of_tokens = not decoder if key == "labels" else every or key in PADDED
        return value[:, here] if of_tokens and value.dim() > 1 and value.shape[1] == T else value

    return {key: cut(key, value) for key, value in example.items()}


def has_decoder(model: nn.Module) -> bool:
    return any(bool(getattr(getattr(m, "config", None), "is_encoder_decoder", False)) for m in model.modules())


def _close(found: Tensor, expected: Tensor, tolerance: float, overall: float) -> bool:
    """Within ``tolerance``; what is zero in exact arithmetic on the scale of ``overall``."""
    norm = expected.double().norm()
    return bool(torch.sub(found.double(), expected).norm() <= tolerance * (norm + 1e-3 * overall))
