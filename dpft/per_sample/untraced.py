"""What a compiled model must run as plain Python, between its graphs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, and all that it calls, never compiled.

    Where the compiler was not loaded nothing is, and loading it takes a second."""
    return _never_compiled(function) if "torch._dynamo" in sys.modules else function


_never_compiled = cache(torch.compiler.disable)


def dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    """A torch function with tracked tensors among its arguments, by the rules of ``dispatch.py``.

    Within a graph a gradient would go to its sink while the graph is traced, and never again."""
    return untraced(_dispatched)(func, args, kwargs or {})


def _dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    from dpft.per_sample.dispatch import apply  # which imports the classes that call this

    with torch._C.DisableTorchFunctionSubclass():
        return apply(func, args, kwargs)
