"""Pruning a trained model: which frozen weights to drop, found from the trained values alone (Chen et al. 2021,
arXiv 2111.00160).

    unstructured   of all weights of the blocks' Linear layers together the share ``ratio`` with the lowest scores
    heads          of each attention the ``heads`` heads with the lowest sums of scores over their query and value rows

The score of a weight is its size in B A + S2 where a layer has such a residual ("ABS"), and |W| elsewhere, as in the
paper. B A + S2 is small beside W, so together the adapted layers go first and may go whole; ``scope = "layer"`` drops
the same share of each layer instead.

All of it is post-processing of values that were trained privately: it costs no privacy. Two ways to use the masks:
:func:`prune` folds the model and leaves exact zeros in it; a second phase (dpft/start.py) keeps them over the frozen
weights, W * mask + s (B A + S2), and trains on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import Role, at, backbone, family_of, is_linear
from dpft.peft.inject import linears_of_blocks, replace_module
from dpft.peft.lora import PARTS, LoRALinear, linear_shape
from dpft.peft.merge import merge
from dpft.peft.method import Wrapper, innermost
from dpft.peft.pruned import Pruned

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Pruning:
    """What to drop: ``ratio`` of the weights, in (0, 1), or ``heads`` of each attention; one of the two."""

    ratio: float | None = None
    heads: int | None = None
    scope: Scope = "global"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.heads is None):
            raise InputError("Expected either ratio or heads to say what to prune; give one of the two.")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise InputError(f"Expected ratio={self.ratio} to be above 0 and below 1.")
        if self.heads is not None and (isinstance(self.heads, bool) or not isinstance(self.heads, int)):
            raise InputError(f"Expected heads={self.heads} to be a whole number.")
        if self.heads is not None and self.heads < 1:
            raise InputError(f"Expected heads={self.heads} to be at least 1.")
        if self.scope not in ("global", "layer"):
            raise InputError(f"Expected scope={self.scope!r} to be global or layer.")


@torch.no_grad()
def prune(
    model: nn.Module, ratio: float | None = None, *, heads: int | None = None, scope: Scope = "global"
) -> dict[str, Tensor]:
    """Fold what a method added into ``model``, in place, and set what is pruned to exactly zero.

    Returns the masks, true where a weight stayed, by the names of the layers. The zeros are in the folded weights,
    so what B A + S2 would add there is dropped too. Errors: :class:`InputError`, with the model unchanged, for a
    method without a merged form, and heads that the model's attention has not."""
    found = masks(model, Pruning(ratio, heads, scope))
    merge(model)
    for name, mask in found.items():
        cast(Tensor, model.get_submodule(name).weight).data *= mask
    return found


@torch.no_grad()
def masks(model: nn.Module, pruning: Pruning) -> dict[str, Tensor]:
    """What stays, true and false in each weight's own shape, by the names of the blocks' Linear layers.

    The same for the same values: ties fall to the first weight. Changes nothing."""
    layers = dict(linears_of_blocks(model))
    if pruning.heads is None:
        stays = _weights(layers, cast(float, pruning.ratio), pruning.scope)
    else:
        stays = {name: _whole(layer) for name, layer in layers.items()} | _heads(model, pruning.heads)
    return {name: _as_kept(mask, layers[name]) for name, mask in stays.items()}


@torch.no_grad()
def hold(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Keep ``found`` as masks over the frozen weights, in place: W * mask + s (B A + S2) from now on."""
    for name, mask in found.items():
        layer = model.get_submodule(name)
        inside = isinstance(layer, Wrapper) and not isinstance(layer, Pruned)
        held = layer.base_layer if inside else layer
        if not isinstance(held, Pruned):
            held = Pruned(cast(nn.Module, held))
            replace_module(model, f"{name}.base_layer" if inside else name, held)
        held.keep(mask.to(held.bits.device))


def sparsity(found: Mapping[str, Tensor]) -> tuple[int, int]:
    """(weights pruned, weights in all) under these masks."""
    return sum(int((~m).sum()) for m in found.values()), sum(m.numel() for m in found.values())


def _weights(layers: Mapping[str, nn.Module], ratio: float, scope: Scope) -> dict[str, Tensor]:
    scores = {name: _score(layer) for name, layer in layers.items()}
    if scope == "layer":
        return {name: _stay(score.flatten(), ratio).view_as(score) for name, score in scores.items()}
    together = _stay(torch.cat([score.flatten() for score in scores.values()]), ratio)
    pieces = torch.split(together, [score.numel() for score in scores.values()])
    return {name: piece.view_as(scores[name]) for name, piece in zip(scores, pieces, strict=True)}


def _stay(scores: Tensor, ratio: float) -> Tensor:
    """True for all but the ``ratio`` lowest of ``scores`` [N]; exactly so many, of equal ones the first go."""
    drop = round(ratio * len(scores))
    if not drop:
        return torch.ones(len(scores), dtype=torch.bool)
    limit = scores.kthvalue(drop).values
    stays = scores > limit
    equal = (scores == limit).nonzero().flatten()
    stays[equal[drop - int((scores < limit).sum()) :]] = True
    return stays


def _heads(model: nn.Module, drop: int) -> dict[str, Tensor]:
    """Masks [O, I] without the weakest heads: their rows of query, key and value, their columns of the projection
    behind, which alone makes what they compute reach nothing."""
    count = _count_of_heads(model, drop)
    found: dict[str, Tensor] = {}
    for query, key, value, after in zip(*_attentions(model), strict=True):
        rows = [_rows(model, layer, part) for part, (_, layer) in enumerate((query, key, value))]
        if len({r.stop - r.start for r in rows} | {linear_shape(innermost(after[1]))[0]}) > 1:
            raise InputError("This model's heads share keys and values, so none can be dropped alone; give a ratio.")
        strength = sum(_score(layer)[rows[i]].sum(dim=1) for i, (_, layer) in ((0, query), (2, value)))
        assert isinstance(strength, Tensor)
        weakest = strength.view(count, -1).sum(dim=1).argsort(stable=True)[:drop]
        lives = torch.ones(count, len(strength) // count, dtype=torch.bool)
        lives[weakest] = False
        for (name, layer), part in zip((query, key, value), rows, strict=True):
            mask = found.setdefault(name, _whole(layer))
            mask[part] &= lives.flatten()[:, None]
        found[after[0]] = _whole(after[1]) & lives.flatten()
    return found


def _count_of_heads(model: nn.Module, drop: int) -> int:
    count = int(backbone(model).config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    if drop >= count:
        raise InputError(f"Expected heads={drop} to be fewer than the {count} heads of each attention.")
    return count


def _attentions(model: nn.Module) -> tuple[list[tuple[str, nn.Module]], ...]:
    """Query, key, value and projection behind, one of each an attention, in the model's order."""
    found = tuple(list(_layers(model, role)) for role in ("query", "key", "value", "attention_proj"))
    if len({len(layers) for layers in found}) > 1:
        raise InputError("This model has attentions of two kinds, whose heads can't be dropped yet; give a ratio.")
    return found


def _rows(model: nn.Module, layer: nn.Module, part: int) -> slice:
    """The rows of query, key or value (``part`` 0, 1, 2) in a layer that may hold all three."""
    outputs = linear_shape(innermost(layer))[1]
    size = outputs // len(PARTS)
    return slice(part * size, (part + 1) * size) if family_of(model).fused > 1 else slice(0, outputs)


def _layers(model: nn.Module, *roles: Role) -> Iterator[tuple[str, nn.Module]]:
    """(name, Linear with what is around it) for the blocks' layers in ``roles``, none inside another."""
    last = None
    for name, module in at(model, *roles):
        if (last is None or not name.startswith(last + ".")) and is_linear(innermost(module)):
            last = name
            yield name, module


def _score(layer: nn.Module) -> Tensor:
    """Scores [O, I], float32 on the processor; below all others where a weight is pruned already."""
    base = innermost(layer)
    score = _as_kept(cast(Tensor, base.weight).detach(), base).abs().float().cpu()
    if isinstance(layer, LoRALinear):
        residual, size = layer.change().abs().float().cpu(), len(score) // len(PARTS)
        adapted = [slice(part * size, (part + 1) * size) for part in layer.parts] or [slice(None)]
        score = score.clone()  # it may be the weight itself
        for rows in adapted:
            score[rows] = residual[rows]
    inner = layer.base_layer if isinstance(layer, LoRALinear) else layer
    return score.masked_fill(~_as_kept(inner.mask, base).cpu(), -math.inf) if isinstance(inner, Pruned) else score


def _whole(layer: nn.Module) -> Tensor:
    inputs, outputs = linear_shape(innermost(layer))
    return torch.ones(outputs, inputs, dtype=torch.bool)


def _as_kept(matrix: Tensor, layer: nn.Module) -> Tensor:
    """[O, I] as the layer keeps its weight, or the reverse: Conv1D's is [I, O]."""
    return matrix if isinstance(innermost(layer), nn.Linear) else matrix.T
