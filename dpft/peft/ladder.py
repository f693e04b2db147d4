"""Ladder side-tuning: a narrow model that reads the frozen one and trains (Sung et al. 2022, arXiv 2206.06522).

    tokens ─► embedding ─► e ──► Block_1 ─► h_1 ──► Block_2 ─► h_2 ─► ..  ─► h        the backbone, frozen, width d
                           │W_first          │D_1             │D_2          │
                           └► z ──────────► (+)► Block'_1 ──► (+)► Block'_2 ► up z    the side network, width d/r

    z <- Block'_i(g_i z + (1 - g_i)(D_i h_i + c_i))        g_i = sigmoid(alpha_i / 0.1), alpha_i = 0 at the start

for every kept block i. The side network is of the backbone's own class, with layers r times narrower, as many heads,
and its own tables of positions. No gradient enters the backbone: none of its activations is kept, and its outputs can
come from a cache (``[cache]``). In encoder-decoders the side decoder attends to the side encoder.

As published, ``up z`` takes the place of the backbone's output: the model starts as one that knows nothing. By default
it is added to that output and starts at zero, so that the model starts unchanged. Gates of dropped blocks, which the
published code counts, do not exist here: they would never move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import FAMILIES, backbone, model_type
from dpft.peft.ladder_init import narrowed
from dpft.peft.ladder_net import SideNetwork
from dpft.peft.ladder_side import Stack, build_side
from dpft.peft.ladder_weights import Weights, fisher, sizes
from dpft.peft.method import Method, Public, expect_one_of, expect_whole, placed

NAME = "ladder"
_STD = 0.01


@dataclass(frozen=True)
class Ladder(Method):
    """``reduction`` is r; ``keep``: the places, from 0, of the blocks of each stack that have a side block, () for all.
    ``init``: side blocks start as the most important rows and columns of the backbone's ("prune": by size; "fisher": by
    squared gradients on public records), or as new ones ("random"). ``start``: "backbone" adds to the backbone's
    output, from zero; "published" replaces it."""

    name: ClassVar[str] = "lst"
    what: ClassVar[str] = "a narrow side network that reads the frozen model (Sung et al. 2022)"
    merges: ClassVar[bool] = False

    reduction: int = 8
    keep: tuple[int, ...] = ()
    init: Literal["prune", "random", "fisher"] = "prune"
    start: Literal["backbone", "published"] = "backbone"

    def __post_init__(self) -> None:
        expect_whole("reduction", self.reduction)
        expect_one_of("init", self.init, ("prune", "random", "fisher"))
        expect_one_of("start", self.start, ("backbone", "published"))
        whole = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in self.keep)
        if not whole or list(self.keep) != sorted(set(self.keep)):
            raise InputError(f"Expected method.keep={list(self.keep)} to be places of blocks, from 0, in rising order.")

    @property
    def identity(self) -> bool:
        return self.start == "backbone"

    @property
    def wants_public(self) -> bool:
        return self.init == "fisher"

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """A side network in every stack: one, or encoder's and decoder's."""
        stacks = _stacks(model)
        sides = [build_side(stack, self.reduction, self._kept(stack), generator) for stack in stacks]
        parts: list[SideNetwork] = []
        for stack, side in zip(stacks, sides, strict=True):
            kept, d = self._kept(stack), stack.width
            if self.init != "random":
                narrowed(stack, side, kept, sizes(stack, kept), reads=stacks[0])
            down = [self._linear(d, d // self.reduction, generator, stack.host) for _ in range(len(kept) + 1)]
            gates = [placed(torch.zeros(()), stack.host) for _ in kept]
            last = stack is stacks[-1]
            zero = self.start == "backbone"
            up = self._linear(d // self.reduction, d, generator, stack.host, zero=zero) if last else None
            parts.append(SideNetwork(stack, kept, side, down, gates, up, joins=zero, reads=parts[0] if parts else None))
        for stack, part in zip(stacks, parts, strict=True):
            part.put(stack.host, NAME)
        return [p for part in parts for p in part.parameters()]

    def inform(self, model: nn.Module, public: Public) -> None:
        """Choose the side blocks' rows and columns again, by the gradients of single public records."""
        if public.loss is None:
            raise InputError("The rows are chosen by gradients of the training loss; give Public(batches, loss=...).")
        stacks = _stacks(model)
        parts = [stack.host.get_submodule(NAME) for stack in stacks]
        for part in parts:
            part.enabled = False  # type: ignore[assignment]
        try:
            found = [fisher(model, stack, self._kept(stack), public) for stack in stacks]
        finally:
            for part in parts:
                part.enabled = True  # type: ignore[assignment]
        for stack, part, importance in zip(stacks, parts, found, strict=True):
            side: nn.Module = part.side  # type: ignore[assignment]
            encoder: Weights | None = found[0] if len(found) > 1 else None
            narrowed(stack, side, self._kept(stack), importance, reads=stacks[0], reads_importance=encoder)

    def _kept(self, stack: Stack) -> tuple[int, ...]:
        kept = self.keep or tuple(range(len(stack.blocks)))
        if kept[-1] >= len(stack.blocks):
            raise InputError(
                f"Expected method.keep={list(kept)} to name some of the model's {len(stack.blocks)} blocks, which are "
                f"0 to {len(stack.blocks) - 1}."
            )
        return kept

    def _linear(
        self, inputs: int, outputs: int, generator: torch.Generator, like: nn.Module, *, zero: bool = False
    ) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, device="meta")  # draws nothing from torch's own generator
        weight: Tensor = torch.empty(outputs, inputs).normal_(0, _STD, generator=generator)
        layer.weight = placed(torch.zeros_like(weight) if zero else weight, like)
        layer.bias = placed(torch.zeros(outputs), like)
        return layer


def _stacks(model: nn.Module) -> list[Stack]:
    """The backbone, or the encoder and the decoder in it. :class:`InputError` for a family that is not in the table."""
    core = backbone(model)
    if model_type(core) not in FAMILIES:
        raise InputError(
            f"Expected a model of a family that side networks are tested on ({', '.join(FAMILIES)}), found "
            f"{model_type(core)!r}."
        )
    family = FAMILIES[model_type(core)]
    if len(family.blocks) == 1:
        return [Stack(core, family)]
    return [Stack(getattr(core, part), family) for part in ("encoder", "decoder") if hasattr(core, part)]
