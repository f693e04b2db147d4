"""Several methods side by side in one model, under one clip and one noise.

Together((RAFT(), BitFit()))        rational functions and biases, as in Fang et al. 2022
[beside] name = "bitfit"            the same in a recipe, next to [method] name = "raft"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.peft.method import Method, Public, Wrapper

NAME = "together"
_ALONE = ("full", "last-k", "head", "lst", NAME)  # each of these decides about the whole model


@dataclass(frozen=True)
class Together(Method):
    """At least two ``methods``, put in one after the other; none may adapt what another has put in or wraps."""

    name: ClassVar[str] = NAME
    what: ClassVar[str] = "several methods side by side"

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(f"Expected at least two methods, each once, found {', '.join(names) or 'none'}.")
        alone = next((name for name in names if name in _ALONE), None)
        if alone:
            raise InputError(f"The method {alone!r} stands by itself: leave the other out.")
        if any(getattr(method, "mask_steps", 0) for method in self.methods):
            raise InputError("method.mask_steps pays for the mask of a method that trains alone: leave out the other.")

    @property
    def merges(self) -> bool:  # type: ignore[override]
        return all(method.merges for method in self.methods)

    @property
    def identity(self) -> bool:
        return all(method.identity for method in self.methods)

    @property
    def stored(self) -> Method:
        return replace(self, methods=tuple(method.stored for method in self.methods))

    @property
    def wants_public(self) -> bool:
        return any(method.wants_public for method in self.methods)

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        trained: dict[int, nn.Parameter] = {}
        owners: dict[nn.Module, str] = {}
        for method in self.methods:
            trained |= {id(p): p for p in method.inject(model, generator)}
            for _, wrapper in _wrappers(model):
                owners.setdefault(wrapper, method.name)
            _check_apart(model, owners)
        return list(trained.values())

    def inform(self, model: nn.Module, public: Public) -> None:
        for method in self.methods:
            if method.wants_public:
                method.inform(model, public)


def _wrappers(model: nn.Module) -> list[tuple[str, Wrapper]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, Wrapper)]


def _check_apart(model: nn.Module, owners: Mapping[nn.Module, str]) -> None:
    """No wrapper of one method inside a wrapper of another: what merges into what would be unclear."""
    for name, outer in _wrappers(model):
        if any(owners.get(inner, owners[outer]) != owners[outer] for inner in outer.modules()):
            raise InputError(
                f"Two methods adapt {name}, or what is in it: give them method.targets and beside.targets apart."
            )
