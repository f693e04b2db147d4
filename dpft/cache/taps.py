"""Taps on a model's callables: each passes its call on and is heard, or answers in its owner's place.

A place is a dotted name with the method at its end: ``encoder.layer.3.forward``, ``features``. The model's own code
stays the only code of its forward pass, and hooks on a tapped module run as ever: they see the answer as they would
see the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from torch import nn


class Taps(AbstractContextManager["Taps"]):
    """``heard``: while it is a dictionary, it collects what each place returns, call by call. ``answers``: while it is
    one, the places in it return their values and are not called. Both None: the model is as it was without taps."""

    def __init__(self, model: nn.Module, places: Iterable[str]) -> None:
        self.heard: dict[str, list[Any]] | None = None
        self.answers: dict[str, Any] | None = None
        self._before: list[tuple[nn.Module, str, Any]] = []
        for place in places:
            name, _, attribute = place.rpartition(".")
            owner = model.get_submodule(name)
            self._before.append((owner, attribute, owner.__dict__.get(attribute)))
            object.__setattr__(owner, attribute, self._tapped(place, getattr(owner, attribute)))

    def remove(self) -> None:
        """Take the taps out again; the model keeps nothing of them."""
        for owner, attribute, before in reversed(self._before):
            object.__delattr__(owner, attribute)
            if before is not None:
                object.__setattr__(owner, attribute, before)
        self._before = []

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _tapped(self, place: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            if self.answers is not None and place in self.answers:
                return self.answers[place]
            output = call(*args, **kwargs)
            if self.heard is not None:
                self.heard.setdefault(place, []).append(output)
            return output

        return tapped
