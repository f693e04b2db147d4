"""Small gradients of neighbouring parameters as one.

A norm, a sum and an addition cost some 15 us each however small a gradient is, and a method may train hundreds of small
tensors. What lies side by side in the sum's vector is a part of it like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from dpft.errors import PrivacyError
from dpft.per_sample import Dense, Form

Names = tuple[str, ...]  # of parameters that follow one another
_SMALL, _ENOUGH = 2**16, 2**20  # numbers of all examples: of one gradient that is joined, of several together


def joined(forms: dict[str, Form], order: Iterable[str]) -> dict[Names, Form]:
    """The forms by the names that each is for: those of the parameters in ``order``, small dense ones of neighbours as
    one [B, n]. ``forms`` is emptied: the memory of each goes as it is copied.

    Raises :class:`PrivacyError` for a form of a parameter that is not in ``order``: it would be in no norm and sum."""
    found = {tuple(run): _one(list(run.values())) for run in _runs(forms, order)}
    if forms:
        raise PrivacyError(
            f"Expected gradients of the engine's parameters alone, found some of {', '.join(forms)}: build the engine "
            "after the last change to the model."
        )
    return found


def _runs(forms: dict[str, Form], order: Iterable[str]) -> Iterator[dict[str, Form]]:
    run: dict[str, Form] = {}
    size = 0
    for name in order:
        form = forms.pop(name, None)
        small = isinstance(form, Dense) and form.numel <= _SMALL
        if run and not (small and size < _ENOUGH):
            yield run
            run, size = {}, 0
        if form is not None:
            run[name] = form
            size += form.numel if small else _ENOUGH  # one that is not small stays by itself
    if run:
        yield run


def _one(run: list[Form]) -> Form:
    dense = [form for form in run if isinstance(form, Dense)]
    return Dense(torch.cat([form.flat() for form in dense], dim=1)) if len(run) > 1 else run[0]
