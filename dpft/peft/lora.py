"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).

    x ──► W0 (frozen) ───────────►(+)──► y        y = W0 x + s B A x
      └─► A [r,I] ─► B [O,r] ─► *s ───┘           s = alpha / rank (rsLoRA: alpha / sqrt(rank)), or 1

A starts Kaiming-uniform (or Xavier-normal), B at zero, so the model starts unchanged. Trained: A and B of every
target; with ``freeze_a`` B alone (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313). With ``fuse_qkv`` query, key and
value of one attention share A, as one pair on a fused projection would. A target ``c_attn:q`` is one part of a
projection that holds query, key and value in one weight.
Per-example gradients come from the rules of Linear; a rank-r factor is small, so they are kept dense.

On a sparse backbone B A fills the zeros when it is merged. With ``pattern = "lock"`` a sparse layer is trained as
what can be merged, y = (W0 + s M * (B A)) x with M = (W0 != 0): exact, at the price of one more [O, I] matrix a layer
in each pass, and of per-example gradients that are [O, I], some examples at a time, before they are pulled back to A
and B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dpft.errors import InputError
from dpft.peft.families import at, family_of, is_linear
from dpft.peft.inject import ALL_LINEAR, linears, matching_modules, of_last_blocks, replace_module
from dpft.peft.method import Method, Wrapper, expect_whole
from dpft.peft.pattern import Pattern, check_pattern, is_sparse

PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class LoRA(Method):
    """What to adapt. ``targets`` are last components of module names (``("query", "value")``), or
    ``("all-linear",)`` for every Linear of the transformer blocks, or ``()`` for the family's usual ones; with
    ``blocks`` only those in the last so many blocks. ``alpha`` absent means scaling 1."""

    name: ClassVar[str] = "lora"
    what: ClassVar[str] = "low-rank pairs beside chosen Linear layers (Hu et al. 2021)"
    merges: ClassVar[bool] = True

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    blocks: int | None = None
    fuse_qkv: bool = False
    freeze_a: bool = False
    rslora: bool = False
    init: Literal["kaiming", "xavier"] = "kaiming"
    pattern: Pattern = "ignore"

    def __post_init__(self) -> None:
        expect_whole("rank", self.rank)
        if self.blocks is not None:
            expect_whole("blocks", self.blocks)
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise InputError(f"Expected method.alpha={self.alpha} to be a finite number above 0.")
        if self.rslora and self.alpha is None:
            raise InputError("method.rslora scales by alpha/sqrt(rank): set method.alpha, or leave rslora out.")
        if self.init not in ("kaiming", "xavier"):
            raise InputError(f"Expected method.init={self.init!r} to be kaiming or xavier.")
        check_pattern(self.pattern)

    @property
    def scaling(self) -> float:
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Wrap every target; the factors' parameters train (B alone with ``freeze_a``)."""
        targets = of_last_blocks(model, places(model, self.targets or family_of(model).lora), self.blocks)
        siblings = self._siblings(model) if self.fuse_qkv else {}
        made: dict[str, LoRALinear] = {}
        trained: list[nn.Parameter] = []
        for name, module, parts in targets:
            first = made.get(siblings.get(name, ""))
            kind = LockedLoRALinear if self.pattern == "lock" and is_sparse(module) else LoRALinear
            layer = kind(module, self, generator, parts, cast(nn.Parameter, first.lora_A.weight) if first else None)
            made.setdefault(siblings.get(name, name), layer)
            replace_module(model, name, layer)
            shared = first is not None or self.freeze_a
            trained += [*(() if shared else layer.lora_A.parameters()), *layer.lora_B.parameters()]
        return trained

    def _siblings(self, model: nn.Module) -> dict[str, str]:
        """Name of each query, key and value projection -> name of the attention that they share."""
        if family_of(model).fused > 1:
            return {}  # one weight, one pair already
        return {name: name.rpartition(".")[0] for name, _ in at(model, "query", "key", "value")}


def places(model: nn.Module, targets: tuple[str, ...]) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """(name, module, indices of the adapted parts of a fused projection) of what ``targets`` name."""
    if ALL_LINEAR in targets:
        yield from ((name, module, ()) for name, module in linears(model, targets))
        return
    parts: dict[str, list[str]] = {}
    for target in targets:
        stem, colon, part = target.partition(":")
        if colon and part not in PARTS:
            raise InputError(f"method.targets names {target!r}; expected one of the parts q, k, v after the colon.")
        parts.setdefault(stem, []).append(part)
    if any("" in found and len(found) > 1 for found in parts.values()):
        raise InputError("method.targets names a module both whole and by its parts; leave out one of the two.")
    for name, module in matching_modules(model, tuple(parts), is_linear):
        wanted = next(found for stem, found in parts.items() if name == stem or name.endswith("." + stem))
        yield name, module, tuple(sorted({PARTS.index(part) for part in wanted if part}))


class LoRALinear(Wrapper):
    """A Linear (or GPT-2 Conv1D) with a low-rank branch. [B, ..., I] -> [B, ..., O].

    With ``parts`` each adapted third of the outputs has a pair of its own; their A's lie in one matrix
    [len(parts) * r, I]. ``shared_A`` is the weight of ``lora_A`` where several layers share it: one parameter in
    several modules, since a module in several places would answer a hook once for each."""

    def __init__(
        self,
        base: nn.Module,
        config: LoRA,
        generator: torch.Generator,
        parts: tuple[int, ...] = (),
        shared_A: nn.Parameter | None = None,
    ) -> None:
        super().__init__(base)
        inputs, outputs = linear_shape(base)
        if parts and outputs % len(PARTS):
            raise InputError(f"Expected a projection of query, key and value; {outputs} outputs are no three parts.")
        weight = next(base.parameters())
        self.parts, self.scaling, self.rank = parts, config.scaling, config.rank
        new = partial(nn.Linear, bias=False, device=weight.device, dtype=weight.dtype)
        self.lora_A = new(inputs, config.rank * max(1, len(parts)))
        out = outputs // len(PARTS) if parts else outputs
        self.lora_B: nn.Module = nn.ModuleList(new(config.rank, out) for _ in parts) if parts else new(config.rank, out)
        with torch.no_grad():
            if shared_A is not None:
                self.lora_A.weight = shared_A
            elif weight.device.type != "meta":
                self.lora_A.weight.copy_(torch.cat([_initial(config, inputs, generator) for _ in parts or (0,)]))
            for p in self.lora_B.parameters():
                p.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        branch: Tensor = self._branch(self.lora_A(x), y)
        return y + (branch if self.scaling == 1 else branch * self.scaling)

    def _branch(self, h: Tensor, y: Tensor) -> Tensor:
        if not self.parts:
            full: Tensor = self.lora_B(h)
            return full
        size = y.shape[-1] // len(PARTS)
        made = {part: B(a) for part, B, a in zip(self.parts, self._pairs(), torch.split(h, self.rank, -1), strict=True)}
        nothing = y.new_zeros(()).expand(*y.shape[:-1], size)
        return torch.cat([made.get(part, nothing) for part in range(len(PARTS))], dim=-1)

    def _pairs(self) -> list[nn.Linear]:
        return cast(list[nn.Linear], list(self.lora_B.children()) if self.parts else [self.lora_B])

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) of the equivalent single pair on the whole projection: [k r, I] and [O, k r], k = parts or 1."""
        A = self.lora_A.weight.detach()
        if not self.parts:
            return A, self._pairs()[0].weight.detach()
        size, r = self._pairs()[0].out_features, self.rank
        B = A.new_zeros(size * len(PARTS), r * len(self.parts))
        for i, (part, layer) in enumerate(zip(self.parts, self._pairs(), strict=True)):
            B[part * size : (part + 1) * size, i * r : (i + 1) * r] = layer.weight.detach()
        return A, B

    def change(self) -> Tensor:
        """What the branch adds to the weight, before the scaling: [O, I]."""
        A, B = self.factors()
        return B @ A

    def merged(self) -> nn.Module:
        delta = self.scaling * self.change()
        weight = cast(Tensor, self.base_layer.weight)
        weight.data += delta if isinstance(self.base_layer, nn.Linear) else delta.T
        return self.base_layer


class LockedLoRALinear(LoRALinear):
    """The same on a sparse base, in the places of the entries that are not zero alone. [B, ..., I] -> [B, ..., O]."""

    reads_weight = True

    def forward(self, x: Tensor) -> Tensor:
        weight = cast(Tensor, self.base_layer.weight)
        change = self._product() if isinstance(self.base_layer, nn.Linear) else self._product().T
        changed = weight + (weight != 0) * change * self.scaling
        y: Tensor = functional_call(self.base_layer, {"weight": changed}, (x,))
        return y

    def _product(self) -> Tensor:
        """B A [O, I], on the graph."""
        A = self.lora_A.weight
        if not self.parts:
            return self._pairs()[0].weight @ A
        each = zip(self.parts, self._pairs(), torch.split(A, self.rank), strict=True)
        made = {part: pair.weight @ a for part, pair, a in each}
        nothing = A.new_zeros(self._pairs()[0].out_features, A.shape[1])
        return torch.cat([made.get(part, nothing) for part in range(len(PARTS))])

    def change(self) -> Tensor:
        mask = cast(Tensor, self.base_layer.weight) != 0
        return super().change() * (mask if isinstance(self.base_layer, nn.Linear) else mask.T)


def _initial(config: LoRA, inputs: int, generator: torch.Generator) -> Tensor:
    empty = torch.empty(config.rank, inputs)
    if config.init == "xavier":
        return empty.normal_(0, math.sqrt(2 / (inputs + config.rank)), generator=generator)
    bound = 1 / math.sqrt(inputs)  # Kaiming-uniform with a = sqrt(5), as in the paper's code
    return empty.uniform_(-bound, bound, generator=generator)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs)."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = next(module.parameters()).shape  # Conv1D keeps its weight as [I, O]
    return inputs, outputs
