"""Names of a model's layers in a recipe: types that say what a name may look like."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from dpft.config.base import Words

_PARTS = ("q", "k", "v")


def each_once(names: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(names)) < len(names):
        raise ValueError("expected each name once")
    return names


def _last_components(names: tuple[str, ...]) -> tuple[str, ...]:
    if any("." in name for name in names):
        raise ValueError('expected last components of module names, such as "query"; no dots')
    if "all-linear" in names and len(names) > 1:
        raise ValueError('expected "all-linear" by itself, since it names every Linear layer of the blocks')
    return names


def _whole_layers(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(":" in name for name in names):
        raise ValueError("expected whole layers; only lora adapts a part of one")
    return names


def _parts_of_layers(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(":" in name and name.partition(":")[2] not in _PARTS for name in names):
        raise ValueError('expected q, k or v after the colon, as in "c_attn:q"')
    return names


Paths = Annotated[Words, Field(max_length=1000), AfterValidator(each_once), AfterValidator(_whole_layers)]
"""Ends of dotted module names, each of one component or several (``mlp.c_proj``)."""

Layers = Annotated[Paths, AfterValidator(_last_components)]
"""Last components of module names."""

Parts = Annotated[
    Words,
    Field(max_length=1000),
    AfterValidator(each_once),
    AfterValidator(_last_components),
    AfterValidator(_parts_of_layers),
]
"""The same, or a part of a projection that holds query, key and value in one weight."""
