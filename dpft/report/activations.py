"""A picture of the activation functions that a model learnt. It shows released weights only, so it costs no privacy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from dpft_accounting import plots
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.raft import Rational

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS, _POINTS = 3, 401


def activations_svg(model: nn.Module) -> bytes | None:
    """The picture as a file's content; None for a model whose activation functions did not train."""
    return plots.svg(learned_functions(model)).encode() if _layers(model) else None


def learned_functions(model: nn.Module) -> Figure:
    """Each layer's rational function as it is now, beside the function that it replaced.

    Raises :class:`InputError` for a model without any."""
    from matplotlib.figure import Figure

    layers = _layers(model)
    if not layers:
        raise InputError("Expected a model with rational activation functions; attach dpft.RAFT() to it first.")
    columns = min(_COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(1 + 2.4 * columns, 0.6 + 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, title, layer in zip(grid.flat, _titles(list(layers)), layers.values(), strict=False):
        _draw(axes, title, layer)
    for axes in grid.flat[len(layers) :]:
        axes.remove()
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _layers(model: nn.Module) -> dict[str, Rational]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Rational)}


def _draw(axes: Axes, title: str, layer: Rational) -> None:
    x, old, new = _curves(layer)
    axes.axhline(0, color="#dde3ea", lw=0.6)
    axes.plot(x, old, color="#9aa5b1", lw=2.5, label="before")
    axes.plot(x, new, color="#1668a8", lw=1.3, label="learnt")
    axes.set_title(f"{title}: at most {float((new - old).abs().max()):.2g} apart", loc="left", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _curves(layer: Rational) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs over the range of the fit, the old function of them and the learnt one, [points] each."""
    x = torch.linspace(-layer.c, layer.c, _POINTS)
    with torch.no_grad():
        given = x.to(layer.numerator)[None]
        return x, layer.base_layer(given)[0].cpu().float(), layer(given)[0].cpu().float()


def _titles(names: Sequence[str]) -> list[str]:
    """What tells the names apart.

    >>> _titles(["encoder.layer.0.act", "encoder.layer.1.act"]), _titles(["h.0.act", "pooler.act"]), _titles(["h.act"])
    (['layer 0', 'layer 1'], ['h.0', 'pooler'], ['h.act'])
    """
    parts = [name.split(".") for name in names]
    if len(parts) > 1:
        while len({p[0] for p in parts}) == 1:
            parts = [p[1:] for p in parts]
        while len({p[-1] for p in parts}) == 1:
            parts = [p[:-1] for p in parts]
    rests = [".".join(p) for p in parts]
    return [f"layer {rest}" if rest.isdigit() else rest for rest in rests]
