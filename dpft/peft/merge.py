"""Fold what a method added into the weights underneath, so that plain transformers can load the model."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.peft.around import Around
from dpft.peft.inject import replace_module
from dpft.peft.method import Wrapper, innermost
from dpft.peft.pattern import lost_by_merging

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def merge(model: M, *, keep_pattern: bool = False) -> M:
    """``model`` with every added module folded into its base, in place; computes the same up to rounding.

    With ``keep_pattern`` the zeros of a sparse base stay zero, whatever the method would put there: the merged model
    then differs from the trained one, as far as :func:`dpft.peft.pattern.lost_by_merging` says beforehand.
    Post-processing of trained values: free of privacy cost. Raises :class:`InputError`, with the model unchanged, for a
    method that has no merged form (adapters, Compacter), and, without ``keep_pattern``, where zeros would be filled."""
    around = next((m for m in model.modules() if isinstance(m, Around)), None)
    if around is not None:
        raise InputError(
            f"A {type(around).__name__} lies beside the model's own layers and has no merged form; leave --merge out."
        )
    # A module that stands in two places (a table of encoder and decoder) is folded once and put back in both.
    found = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, Wrapper)]
    for wrapper in (m for _, m in found if type(m).merged is Wrapper.merged):
        wrapper.merged()  # raises, before anything is folded
    lost = lost_by_merging(model)
    if lost and not keep_pattern:
        raise InputError(
            f"Merging would fill the zeros of {len(lost)} sparse layers ({next(iter(lost))} for one): train with "
            'method.pattern = "lock", which lora has, or fold in only what falls on other entries with '
            "keep_pattern=True (--keep-pattern), which changes what the model computes."
        )
    sparse = {innermost(model.get_submodule(name)).get_parameter("weight") for name in lost}
    zeros = {weight: weight == 0 for weight in sparse}
    folded: dict[Wrapper, nn.Module] = {}
    for name, wrapper in reversed(found):  # a wrapper inside another first
        if wrapper not in folded:
            folded[wrapper] = wrapper.merged()
        replace_module(model, name, folded[wrapper])
    for weight, mask in zeros.items():
        weight[mask] = 0.0
    return model
