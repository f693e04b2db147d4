"""Collect per-example gradients during one backward pass, for the trainable parameters of any model.

While :func:`capture` is open, each trainable parameter answers ``__torch_function__``: the few torch
functions with a rule (see ``rules.py``) are computed by an autograd function that keeps the examples
apart; any other function that would let gradient flow from the parameter raises. Nothing wraps the model,
so ``state_dict``, ``generate`` and ``save_pretrained`` stay as they are, and modules written by others
(HF models, HF peft) need no cooperation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import PrivacyError
from dpft.per_sample.forms import Form, total
from dpft.per_sample.functions import ExpandFn, Sink

# The open captures, by parameter identity. A dictionary beside the parameters, never state on them.
_open: dict[int, tuple[Grads, str]] = {}


class Tracked(nn.Parameter):
    """The class a trainable parameter has while a capture is open; it holds no data of its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from dpft.per_sample.rules import apply  # the rules import this module

        with torch._C.DisableTorchFunctionSubclass():
            return apply(func, args, kwargs or {})


class Grads(Mapping[str, Form]):
    """What a capture collected: parameter name -> form. Several uses of a parameter are already added.

    ``examples`` is the number of examples B, given or read off the model's first tensor input. Every form
    must have exactly that many rows; one that doesn't raises :class:`PrivacyError` and names the parameter.
    """

    def __init__(self, names: Mapping[int, str], examples: int | None) -> None:
        self.examples = examples
        self._names = names
        self._uses: dict[str, list[Form]] = {}

    def sink(self, name: str) -> Sink:
        def record(form: Form) -> None:
            self.expect(form.batch, f"parameter {name}")
            self._uses.setdefault(name, []).append(form)

        return record

    def expect(self, batch: int, where: str) -> None:
        """The batch axis is proved, never inferred: every use must agree with the number of examples."""
        if self.examples is None:
            self.examples = batch
        if batch != self.examples:
            raise PrivacyError(
                f"Expected {self.examples} examples at {where}, found a leading dimension of {batch}: its "
                "gradient can't be told apart by example. Use it on tensors that keep the batch first "
                "(dpft.per_sample.expand gives such a copy of a parameter), or freeze it."
            )

    def __getitem__(self, name: str) -> Form:
        if name not in self._uses:
            raise KeyError(f"{name}: no gradient was collected; trainable: {', '.join(self._names.values())}")
        self._uses[name] = [total(self._uses[name])]
        return self._uses[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._uses)

    def __len__(self) -> int:
        return len(self._uses)

    @property
    def missing(self) -> tuple[str, ...]:
        """Trainable parameters that received no gradient."""
        return tuple(name for name in self._names.values() if name not in self._uses)


def owner(p: Any) -> tuple[Grads, str] | None:
    """The open capture that a parameter belongs to, and its name there."""
    return _open.get(id(p)) if isinstance(p, Tracked) else None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, each once (a tied one under its first name), in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def capture(model: nn.Module, *, examples: int | None = None) -> Iterator[Grads]:
    """Collect the per-example gradients of ``model``'s trainable parameters.

    Run forward and backward inside the block, on the *sum* of a vector of per-example losses::

        with capture(model) as grads:
            losses(model, batch).sum().backward()
        grads["head.weight"].dense()    # [B, *shape]

    ``p.grad`` is not touched. Raises :class:`PrivacyError` where a parameter is used in a way that has no
    rule, where the batch axis is not what it must be, or where an ordinary gradient was accumulated."""
    params = trainable(model)
    for name, p in params.items():
        if type(p) is not nn.Parameter:
            reason = "another capture is open" if isinstance(p, Tracked) else f"it is a {type(p).__name__}"
            raise PrivacyError(f"Can't track parameter {name}: {reason}. Expected a plain torch.nn.Parameter.")
    grads = Grads({id(p): name for name, p in params.items()}, examples)
    before = {name: _grad_state(p) for name, p in params.items()}
    hook = model.register_forward_pre_hook(_read_batch(grads), with_kwargs=True)
    try:
        for name, p in params.items():
            _open[id(p)] = (grads, name)
            p.__class__ = Tracked
        yield grads
    finally:
        hook.remove()
        for p in params.values():
            _open.pop(id(p), None)
            p.__class__ = nn.Parameter
    for name, p in params.items():
        if _grad_state(p) != before[name]:
            p.grad = None
            raise PrivacyError(
                f"Parameter {name} received an ordinary, unclipped gradient: some function reached it past "
                "its rule. The gradient was dropped; freeze the parameter or use it through a stock layer."
            )


def expand(p: Tensor, batch: int) -> Tensor:
    """``p`` as a batch of equal copies, [batch, *shape].

    The way to use a parameter that no stock layer holds (a gate, a soft prompt, a table of coefficients):
    its per-example gradient is then what autograd gives each copy. Outside a capture it is a plain view."""
    return expanded(p, batch, p.dim() + 1)


def expanded(p: Tensor, batch: int, ndim: int) -> Tensor:
    """As :func:`expand`, with dimensions of size one put behind the batch until there are ``ndim``."""
    found = owner(p)
    with torch._C.DisableTorchFunctionSubclass():
        if found is None:
            return p.view(1, *(1,) * (ndim - 1 - p.dim()), *p.shape).expand(batch, *(-1,) * (ndim - 1))
        grads, name = found
        grads.expect(batch, f"parameter {name}")
        return ExpandFn.apply(p, batch, ndim, grads.sink(name))  # type: ignore[no-any-return, no-untyped-call]


def _grad_state(p: nn.Parameter) -> tuple[int, int]:
    grad = p.grad
    return (0, 0) if grad is None else (id(grad), grad._version)


def _read_batch(grads: Grads) -> Any:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 0]
        if tensors:
            grads.expect(tensors[0].shape[0], "the model's input")

    return hook
