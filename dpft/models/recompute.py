"""Activation checkpointing: layers that keep nothing and run again in the backward pass; in eval mode too.

A model of transformers does so in train mode alone, since only then it means to train. Here a model trains in the mode
it is given in, eval mode unless dropout is asked for, and the preflight is in eval mode whatever comes after it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from dpft.errors import InputError


def recompute(encoder: Any) -> None:
    """Tell the layers of a pretrained model to keep no activations. Half as much time again, a fraction of the memory.

    Errors: :class:`InputError` where transformers has no such layers for it."""
    if not getattr(encoder, "supports_gradient_checkpointing", False):
        raise InputError(
            f"Expected a model that can recompute its activations for train.recompute, found {type(encoder).__name__}, "
            "for which transformers has no activation checkpointing; leave train.recompute out."
        )
    encoder.activation_checkpointing_enable({"use_reentrant": False})


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Layers that were told to recompute do so here, each in its present mode.

    No keys are cached meanwhile: a layer that runs twice would hold them twice. Nothing changes for a model without
    such layers, and all is put back."""
    made_to = _made_to()
    layers = [m for m in model.modules() if isinstance(m, made_to) and m.gradient_checkpointing]
    with ExitStack() as changed:
        for layer in layers:
            function = _in_mode(layer, layer.training, layer._gradient_checkpointing_func)
            changed.enter_context(_set(layer, "_gradient_checkpointing_func", function))
            changed.enter_context(_set(layer, "training", True))  # without which it does not recompute
        for config in _caching(model) if layers else ():
            changed.enter_context(_set(config, "use_cache", False))
        yield


def _made_to() -> tuple[type[Any], ...]:
    """Transformers' class of such layers. Where it was never loaded no model has any, and loading it takes a second."""
    found = sys.modules.get("transformers.modeling_layers")
    return () if found is None else (found.GradientCheckpointingLayer,)


def _caching(model: nn.Module) -> Iterator[Any]:
    configs = (getattr(m, "config", None) for m in model.modules())
    return (config for config in configs if getattr(config, "use_cache", False))


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
