"""Which layers of a stack say what is important in it, and how important each of their weights is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import is_linear
from dpft.peft.ladder_side import Stack
from dpft.peft.method import Public
from dpft.per_sample.batches import examples_in, take, to_device

Weights = Mapping[str, Tensor]
"""Importance [O, I] of the weights of Linear layers, by their names in the stack."""


@dataclass(frozen=True)
class Attention:
    """Names of one attention's layers, in the stack. A fused projection plays three roles."""

    query: str
    key: str
    value: str
    proj: str
    crosses: bool


@dataclass(frozen=True)
class Block:
    """Names of the layers whose weights make the choice, in one block."""

    attentions: tuple[Attention, ...]
    ffn_in: tuple[str, ...]
    ffn_proj: str


def sizes(stack: Stack, kept: tuple[int, ...]) -> Weights:
    """The importance of weights by their absolute values."""
    return {name: matrix(stack.host, name).abs().float() for name in _names(stack, kept)}


def fisher(model: nn.Module, stack: Stack, kept: tuple[int, ...], public: Public) -> Weights:
    """The importance of weights by their squared gradients on single public records, in eval mode."""
    assert public.loss is not None
    names = list(_names(stack, kept))
    weights = [stack.host.get_parameter(f"{name}.weight") for name in names]
    sums = [torch.zeros_like(w, dtype=torch.float32) for w in weights]
    training, asked = model.training, [w.requires_grad for w in weights]
    model.eval()
    for w in weights:
        w.requires_grad_(True)
    try:
        for batch in public.batches:
            for i in range(examples_in(batch)):
                one = to_device(take(batch, slice(i, i + 1)), weights[0].device)
                with torch.enable_grad():
                    found = torch.autograd.grad(public.loss(model, one).sum(), weights, allow_unused=True)
                for s, g in zip(sums, found, strict=True):
                    if g is not None:
                        s += g.float().square()
    finally:
        for w, before in zip(weights, asked, strict=True):
            w.requires_grad_(before)
        model.train(training)
    if not any(bool(s.any()) for s in sums):
        raise InputError(
            "The gradients on the public records are all zero: what stands behind the blocks lets none through, a head "
            "that starts at zero say."
        )
    return {name: as_rows(stack.host, name, s) for name, s in zip(names, sums, strict=True)}


def _names(stack: Stack, kept: tuple[int, ...]) -> Iterator[str]:
    for block in (block_of(stack, i) for i in kept):
        found = [n for a in block.attentions for n in (a.query, a.key, a.value, a.proj)]
        yield from dict.fromkeys([*found, *block.ffn_in, block.ffn_proj])


def block_of(stack: Stack, i: int) -> Block:
    family, start = stack.family, f"{stack.list}.{i}."
    linear = [name for name, module in stack.blocks[i].named_modules() if is_linear(module)]

    def playing(glob: str) -> list[str]:
        return [name for name in linear if fnmatchcase(name, glob)]

    def projection(query: str) -> str:
        beside = f"{query.rpartition('.')[0]}.o"
        return beside if beside in linear else playing(family.attention_proj)[0]

    triples = zip(playing(family.query), playing(family.key), playing(family.value), strict=True)
    attentions = tuple(
        Attention(start + q, start + k, start + v, start + projection(q), crosses="EncDec" in q) for q, k, v in triples
    )
    inside = tuple(start + name for name in playing(family.ffn_in))
    return Block(attentions, inside, start + playing(family.ffn_proj)[0])


def matrix(host: nn.Module, name: str) -> Tensor:
    """A Linear layer's weight as [O, I]; Conv1D keeps its own as [I, O]."""
    return as_rows(host, name, host.get_parameter(f"{name}.weight").detach())


def as_rows(host: nn.Module, name: str, weight: Tensor) -> Tensor:
    return weight if isinstance(host.get_submodule(name), nn.Linear) else weight.T
