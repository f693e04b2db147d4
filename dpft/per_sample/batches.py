"""A batch is any nesting of dicts, lists and tuples whose tensors have the examples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dpft.errors import InputError


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, depth first."""
    found: list[Tensor] = []
    _gather(batch, found)
    return found


def _gather(batch: Any, found: list[Tensor]) -> None:
    if isinstance(batch, Tensor):
        found.append(batch)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            _gather(value, found)
    elif isinstance(batch, Mapping):
        for value in batch.values():
            _gather(value, found)


def mapped(batch: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting with ``f`` applied to each tensor."""
    if isinstance(batch, Tensor):
        return f(batch)
    if isinstance(batch, (list, tuple)):
        items = [mapped(value, f) for value in batch]
        # A named tuple takes its fields one by one, a plain tuple or list all at once.
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, Mapping):
        return {key: mapped(value, f) for key, value in batch.items()}
    return batch


def take(batch: Any, rows: slice) -> Any:
    """Some examples of a batch."""
    return mapped(batch, lambda t: t[rows])


def to_device(batch: Any, device: Any) -> Any:
    """The batch on another device."""
    return mapped(batch, lambda t: t.to(device, non_blocking=True))


def examples_in(batch: Any) -> int:
    """Number of examples: the leading dimension on which all tensors agree."""
    sizes = {t.shape[0] if t.dim() else -1 for t in tensors(batch)}
    if len(sizes) != 1 or -1 in sizes:
        raise InputError(
            f"Expected a batch whose tensors all have the examples first, found leading sizes {sorted(sizes)}. "
            "Let collate return such tensors and keep everything else out of the batch."
        )
    return sizes.pop()
