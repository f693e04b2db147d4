"""Transformers' activation checkpointing, which a model leaves off in eval mode, kept on there.

The preflight runs in eval mode, so that dropout is off. What fits into memory in training has to fit there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Layers that were told to recompute (``activation_checkpointing_enable``) do so here, in their present mode.

    No keys are cached meanwhile, as in training: a layer that runs twice would hold them twice. Nothing changes for a
    model without such layers, and all is put back."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # late: it takes a second

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    configs = [c for m in model.modules() if getattr(c := getattr(m, "config", None), "use_cache", False)]
    with ExitStack() as changed:
        for layer in layers:
            function = _in_mode(layer, layer.training, layer._gradient_checkpointing_func)
            changed.enter_context(_set(layer, "_gradient_checkpointing_func", function))
            changed.enter_context(_set(layer, "training", True))  # without which it does not recompute
        for config in configs if layers else ():
            changed.enter_context(_set(config, "use_cache", False))
        yield


def _in_mode(layer: nn.Module, training: bool, recompute: Callable[..., Any]) -> Callable[..., Any]:
    """``recompute`` for a function that finds ``layer`` in the mode ``training``, in each of its passes."""

    def call(function: Callable[..., Any], *args: Any) -> Any:
        def in_mode(*inner: Any) -> Any:
            with _set(layer, "training", training):
                return function(*inner)

        return recompute(in_mode, *args)

    return call


@contextmanager
def _set(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
