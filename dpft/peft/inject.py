"""Finding modules by name and putting others in their place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import nn

from dpft.errors import InputError
from dpft.peft.families import FAMILIES, Role, at, blocks_of, is_linear, model_type
from dpft.peft.method import Wrapper, innermost

ALL_LINEAR = "all-linear"
N = TypeVar("N", bound=tuple[Any, ...])


def linears(model: nn.Module, targets: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """The Linear (or Conv1D) modules that ``targets`` name; with ``all-linear`` every one in the family's blocks that
    nothing is put around."""
    if ALL_LINEAR not in targets:
        return matching_modules(model, targets, is_linear)
    return [(name, module) for name, module in linears_of_blocks(model) if is_linear(module)]


def linears_of_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every Linear (or Conv1D) of the model's own in its blocks, in order, with what is put around it."""
    for start, block in (pair for stack in blocks_of(model) for pair in stack):
        around = ""
        for inner, module in block.named_modules():
            if around and inner.startswith(around):
                continue  # a part of what a method put there
            if is_linear(innermost(module)):
                yield f"{start}.{inner}", module
            if isinstance(module, Wrapper):
                around = f"{inner}."


def matches(name: str, target: str) -> bool:
    """Whether ``target`` is the last component, or the last few, of a dotted module name."""
    return name == target or name.endswith("." + target)


def targets_or(
    model: nn.Module, targets: tuple[str, ...], *roles: Role, fits: Callable[[nn.Module], bool] | None = None
) -> list[tuple[str, nn.Module]]:
    """The modules that ``targets`` name; without any, those that play ``roles`` in the model's family."""
    return matching_modules(model, targets, fits or (lambda _: True)) if targets else at(model, *roles)


def matching_modules(
    model: nn.Module, targets: tuple[str, ...], fits: Callable[[nn.Module], bool], expected: str = "a Linear layer"
) -> list[tuple[str, nn.Module]]:
    """Modules that a target names, in the model's order.

    Raises :class:`InputError` for a target that names nothing, or something that does not fit."""
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for target in targets:
        named = {name: m for name, m in modules.items() if matches(name, target)}
        if not named:
            endings = sorted({name.rsplit(".", 1)[-1] for name, m in modules.items() if fits(m)})
            near = difflib.get_close_matches(target, endings, 3, 0.4) or endings[:8]
            raise InputError(f"method.targets names {target!r}, which this model has not; it has {', '.join(near)}.")
        unfit = next((name for name, m in named.items() if not fits(m)), None)
        if unfit is not None:
            raise InputError(f"method.targets names {unfit}, a {type(modules[unfit]).__name__}; expected {expected}.")
        found.update(named)
    return [(name, m) for name, m in modules.items() if name in found]


def last_blocks(model: nn.Module, k: int, field: str) -> list[tuple[str, nn.Module]]:
    """(name, block) of the last ``k`` transformer blocks; of the decoder's, where there are encoder and decoder.

    Raises :class:`InputError` that names ``field`` where there are fewer, or where the family's blocks are unknown."""
    if model_type(model) not in FAMILIES:
        raise InputError(
            f"{field} counts transformer blocks, and those of the model family {model_type(model)!r} are not known, "
            f"only those of {', '.join(FAMILIES)}; name the layers with method.targets instead."
        )
    stack = blocks_of(model)[-1]
    if k > len(stack):
        raise InputError(f"Expected {field}={k} to be at most {len(stack)}, the number of blocks.")
    return stack[-k:]


def of_last_blocks(model: nn.Module, named: Iterable[N], blocks: int | None) -> list[N]:
    """Those of ``named``, tuples that start with a module's name, that lie in the last ``blocks`` blocks; all of them
    where that is None. Raises :class:`InputError` where none is left."""
    named = list(named)
    if blocks is None:
        return named
    within = tuple(name for name, _ in last_blocks(model, blocks, "method.blocks"))
    left = [place for place in named if inside(place[0], within)]
    if not left:
        raise InputError(
            f"method.targets names no module of the last {blocks} blocks; name one, or leave out method.blocks."
        )
    return left


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``name`` was."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def inside(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a dotted name is that of one of ``modules``, or of something in it."""
    return any(name == module or name.startswith(module + ".") for module in modules)
