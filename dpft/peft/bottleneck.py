"""Bottleneck adapters: small layers after a sublayer (Houlsby et al. 2019, arXiv 1902.00751).

    x ──► sublayer (frozen) ──► h ──────────────────────────────►(+)──► y
                                └─► W_d [m,d] ─► phi ─► W_u [d,m] ─┘    y = h + W_u phi(W_d h + b_d) + b_u

The added layers train, and with ``norms`` the model's normalisation layers. By default W_d starts Xavier-normal and
W_u at zero, so the model starts unchanged (as in Yu et al. 2022, arXiv 2110.06500). Per-example gradients come from
the rules of Linear. What all methods of this shape share (size, places, wrapping) is here too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import Role, at, is_linear
from dpft.peft.inject import matching_modules, of_last_blocks, replace_module
from dpft.peft.lora import linear_shape
from dpft.peft.method import Method, Wrapper, expect_one_of, expect_whole, placed

Activation = Literal["gelu", "gelu_new", "relu", "silu"]
Placement = Literal["both", "ffn", "attention"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Place(NamedTuple):
    """A module to adapt: its output has ``width`` numbers a token; what is added lies where ``like`` does."""

    name: str
    module: nn.Module
    width: int
    like: nn.Module


@dataclass(frozen=True)
class Bottleneck(Method):
    """What down-activation-up methods share. At most one of ``bottleneck`` (the width inside) and ``reduction``
    (the sublayer's width over it) is given; ``before_dropout`` puts the adapter of the attention before the
    dropout that ends it; ``norms``: every normalisation layer of the model trains as well; ``targets``: ends of
    names of the modules whose output is adapted, in place of the family's; ``blocks``: only in the last so many."""

    merges: ClassVar[bool] = False
    roles: ClassVar[tuple[Role, ...]] = ("attention_out", "ffn_out")

    bottleneck: int | None = None
    reduction: int | None = None
    bias: bool = True
    activation: Activation = "gelu"
    placement: Placement = "both"
    before_dropout: bool = False
    norms: bool = False
    targets: tuple[str, ...] = ()
    blocks: int | None = None

    def __post_init__(self) -> None:
        for field in ("bottleneck", "reduction", "blocks"):
            if getattr(self, field) is not None:
                expect_whole(field, getattr(self, field))
        if self.bottleneck is not None and self.reduction is not None:
            raise InputError("method.bottleneck and method.reduction both set the width inside; leave out one of them.")
        expect_one_of("activation", self.activation, tuple(ACTIVATIONS))
        expect_one_of("placement", self.placement, ("both", "ffn", "attention"))

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Wrap every place; the added layers train, and the norms if asked for. Each parameter once."""
        places = of_last_blocks(model, self._places(model), self.blocks)
        norms = _norms(model) if self.norms else []
        made = [
            (place.name, Adapted(place.module, down, self.activation, up))
            for place, (down, up) in zip(places, self._layers(places, generator), strict=True)
        ]
        for name, layer in reversed(made):  # a target inside another first, while its name still leads to it
            replace_module(model, name, layer)
        added = (p for _, layer in made for part in layer.added() for p in part.parameters())
        return list({id(p): p for p in (*added, *norms)}.values())

    @abstractmethod
    def _layers(self, places: list[Place], generator: torch.Generator) -> list[tuple[nn.Module, nn.Module]]:
        """The (down, up) pair of each place, :class:`InputError` where it has no room for one."""

    @abstractmethod
    def _default_size(self, width: int) -> int:
        """The width inside where neither ``bottleneck`` nor ``reduction`` is given."""

    def _size(self, place: Place) -> int:
        if self.bottleneck is not None:
            return self.bottleneck
        if self.reduction is None:
            return self._default_size(place.width)
        if self.reduction > place.width:
            raise InputError(
                f"Expected method.reduction={self.reduction} to be at most {place.width}, the width of {place.name}."
            )
        return place.width // self.reduction

    def _places(self, model: nn.Module) -> list[Place]:
        if self.targets:
            found = matching_modules(model, self.targets, _computes, "a module with a forward pass")
            return [Place(name, m, _width(model, name, m), _with_parameters(m, model)) for name, m in found]
        attention: tuple[Role, Role] = ("attention_proj" if self.before_dropout else "attention_out", "attention_proj")
        sublayers: dict[Placement, list[tuple[Role, Role]]] = {
            "attention": [attention],
            "ffn": [("ffn_out", "ffn_proj")],
            "both": [attention, ("ffn_out", "ffn_proj")],
        }
        return [
            # A dropout has no width and no number type; the projection that ends its sublayer has both.
            Place(name, module, _width(model, inner, projection), projection)
            for out, proj in sublayers[self.placement]
            for (name, module), (inner, projection) in zip(at(model, out), at(model, proj), strict=True)
        ]


@dataclass(frozen=True)
class Adapter(Bottleneck):
    """Houlsby's adapter. ``init``: "zero" starts as the identity; "normal" draws both layers from a truncated
    normal of ``init_std`` (near the identity, as published), "xavier" both Xavier-normal. Biases start at 0."""

    name: ClassVar[str] = "adapter"
    what: ClassVar[str] = "bottleneck layers after the sublayers (Houlsby et al. 2019)"

    init: Literal["zero", "normal", "xavier"] = "zero"
    init_std: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of("init", self.init, ("zero", "normal", "xavier"))
        if not 0 < self.init_std < math.inf:
            raise InputError(f"Expected method.init_std={self.init_std} to be a finite number above 0.")

    @property
    def identity(self) -> bool:
        return self.init == "zero"

    def _default_size(self, width: int) -> int:
        return 64

    def _layers(self, places: list[Place], generator: torch.Generator) -> list[tuple[nn.Module, nn.Module]]:
        return [
            (
                self._linear(place, place.width, self._size(place), generator),
                self._linear(place, self._size(place), place.width, generator, up=True),
            )
            for place in places
        ]

    def _linear(
        self, place: Place, inputs: int, outputs: int, generator: torch.Generator, *, up: bool = False
    ) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, self.bias, device="meta")  # draws nothing from torch's own generator
        weight = torch.zeros(outputs, inputs)
        if self.init == "normal":
            # TensorFlow's truncated normal, which the paper's code uses, ends at two standard deviations.
            std = self.init_std
            nn.init.trunc_normal_(weight, 0, std, -2 * std, 2 * std, generator=generator)
        elif self.init == "xavier" or not up:
            nn.init.xavier_normal_(weight, generator=generator)
        layer.weight = placed(weight, place.like)
        if self.bias:
            layer.bias = placed(torch.zeros(outputs), place.like)
        return layer


class Adapted(Wrapper):
    """A module with a bottleneck after it, which sees the first of its outputs. [B, ..., d] -> [B, ..., d]."""

    def __init__(self, base: nn.Module, down: nn.Module, activation: Activation, up: nn.Module) -> None:
        super().__init__(base)
        self.activation = activation
        self.adapter_down, self.adapter_up = down, up

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.base_layer(*args, **kwargs)
        return (self._adapted(out[0]), *out[1:]) if isinstance(out, tuple) else self._adapted(out)

    def _adapted(self, h: Tensor) -> Tensor:
        branch: Tensor = self.adapter_up(ACTIVATIONS[self.activation](self.adapter_down(h)))
        return h + branch

    def added(self) -> tuple[nn.Module, nn.Module]:
        return self.adapter_down, self.adapter_up


def _norms(model: nn.Module) -> list[nn.Parameter]:
    found = [p for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)]
    if not found:
        raise InputError("method.norms is true, but no normalisation layer of this model has parameters; leave it out.")
    return found


def _computes(module: nn.Module) -> bool:
    """A list of modules, say, has no forward pass of its own."""
    return type(module).forward is not nn.Module.forward


def _with_parameters(module: nn.Module, model: nn.Module) -> nn.Module:
    return model if next(module.parameters(), None) is None else module


def _width(model: nn.Module, name: str, module: nn.Module) -> int:
    """Numbers a token in the module's output: its own shape's, else the model's."""
    if is_linear(module):
        return linear_shape(module)[1]
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    config = getattr(model, "config", None)
    for field in ("hidden_size", "d_model", "dim"):
        if isinstance(getattr(config, field, None), int):
            return cast(int, getattr(config, field))
    raise InputError(
        f"method.targets names {name}, a {type(module).__name__} whose output's width is not known; "
        "name the Linear layer before it instead."
    )
