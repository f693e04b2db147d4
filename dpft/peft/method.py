"""What every method is: a frozen value that says what to add to a model, and what of it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.per_sample.oracle import Loss


class Method(ABC):
    """One parameter-efficient method. Subclasses are frozen dataclasses whose fields are the recipe's.

    ``name`` is the recipe's ``method.name``, ``what`` one line with the paper. ``identity``: a freshly
    attached model computes exactly what it did before. ``merges``: the trained model can be turned into one
    of the same modules as the base (:func:`dpft.peft.merge.merge`)."""

    name: ClassVar[str]
    what: ClassVar[str]
    merges: ClassVar[bool]

    @property
    def identity(self) -> bool:
        return True

    @abstractmethod
    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Change ``model`` and return the parameters that train (a task head comes on top, see ``attach``).

        ``generator`` draws the initial values. Raises :class:`InputError`, before anything is changed, where
        the model has no place for the method."""

    @property
    def stored(self) -> Method:
        """The same as a saved adapter names it: without what means something on this machine alone (a path)."""
        return self

    @property
    def wants_public(self) -> bool:
        """Whether the method looks at records before training starts; only declared public ones are shown to it."""
        return False

    def inform(self, model: nn.Module, public: Public) -> None:
        """Set what the method takes from public records (a mask, initial values), in a model it was injected into.

        Called once, by ``attach``, where ``wants_public`` says so; those methods override it."""
        raise NotImplementedError(f"{type(self).__name__} wants public records and does nothing with them")


@dataclass(frozen=True)
class Public:
    """Records that are declared public, in batches, and the loss that the model will be trained with: whatever is
    computed from them costs no privacy. Who makes one vouches that no private record is among them. Without any
    batch: what the method would take from them is in a file that is about to be read."""

    batches: Sequence[Any] = ()
    loss: Loss | None = None


class Wrapper(nn.Module):
    """A module that adds something to another, kept as ``base_layer``; what it doesn't know, the base answers
    (HF code asks a Linear for its ``weight``)."""

    base_layer: nn.Module
    reads_weight: ClassVar[bool] = False  # the base's weight takes part in a product of the wrapper's own

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def merged(self) -> nn.Module:
        """The base with what was added folded into its weights."""
        raise InputError(
            f"A {type(self).__name__} computes what its base layer can't, so it has no merged form; leave --merge out."
        )


def innermost(module: nn.Module) -> nn.Module:
    """What stands inside all wrappers."""
    while isinstance(module, Wrapper):
        module = module.base_layer
    return module


def expect_whole(field: str, value: object) -> None:
    """Raise :class:`InputError` that names ``field`` unless ``value`` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"Expected method.{field}={value} to be a whole number of at least 1.")


def expect_one_of(field: str, value: str, names: tuple[str, ...]) -> None:
    """Raise :class:`InputError` that names ``field`` unless ``value`` is one of ``names``."""
    if value not in names:
        raise InputError(f"Expected method.{field}={value!r} to be one of {', '.join(names)}.")


def placed(parameter: torch.Tensor, like: nn.Module) -> nn.Parameter:
    """``parameter`` on the device and in the number type of ``like``'s own parameters, if it has any."""
    reference = next(like.parameters(), None)
    return nn.Parameter(parameter if reference is None else parameter.to(reference.device, reference.dtype))
