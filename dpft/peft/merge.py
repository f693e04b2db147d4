"""Fold what a method added into the weights underneath, so that plain transformers can load the model."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.peft.around import Around
from dpft.peft.inject import replace_module
from dpft.peft.method import Wrapper

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def merge(model: M) -> M:
    """``model`` with every added module folded into its base, in place; computes the same up to rounding.

    Post-processing of trained values: free of privacy cost. Raises :class:`InputError`, with the model
    unchanged, for a method that has no merged form (adapters, Compacter)."""
    around = next((m for m in model.modules() if isinstance(m, Around)), None)
    if around is not None:
        raise InputError(
            f"A {type(around).__name__} lies beside the model's own layers and has no merged form; leave --merge out."
        )
    # A module that stands in two places (a table of encoder and decoder) is folded once and put back in both.
    found = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, Wrapper)]
    for wrapper in (m for _, m in found if type(m).merged is Wrapper.merged):
        wrapper.merged()  # raises, before anything is folded
    folded: dict[Wrapper, nn.Module] = {}
    for _, wrapper in found:
        if wrapper not in folded:
            folded[wrapper] = wrapper.merged()
    for name, wrapper in found:
        replace_module(model, name, folded[wrapper])
    return model
