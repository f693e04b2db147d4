"""Collect per-example gradients during one backward pass, for the trainable parameters of any model.

While :func:`capture` is open, each trainable parameter answers ``__torch_function__``: the few torch
functions with a rule (see ``rules.py``) are computed by an autograd function that keeps the examples
apart; what else may happen to it is decided in ``dispatch.py``, and raises where nothing is known. Nothing
wraps the model, so ``state_dict``, ``generate`` and ``save_pretrained`` stay as they are, and modules written by others
(HF models, HF peft) need no cooperation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import NoRuleError, PrivacyError
from dpft.per_sample.forms import Form, total
from dpft.per_sample.functions import ExpandFn, Sink, copies
from dpft.per_sample.shared import Shared, cut_off, pulled_back
from dpft.per_sample.untraced import dispatched, untraced
from dpft.per_sample.uses import Uses

# The open captures, by parameter identity. A dictionary beside the parameters, never state on them.
_open: dict[int, tuple[Grads, str]] = {}


class Tracked(nn.Parameter):
    """The class a trainable parameter has while a capture is open; it holds no data of its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs)


class Grads(Mapping[str, Form]):
    """What a capture collected: parameter name -> form. Several uses of a parameter are already added.

    ``examples`` is the number of examples B, given or read off the model's first tensor input. Every form
    must have exactly that many rows; one that doesn't raises :class:`PrivacyError` and names the parameter.
    ``uses`` tells examples from what all share; without it nothing may be computed from parameters alone.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], examples: int | None, uses: Uses | None) -> None:
        self.examples, self.uses = examples, uses
        self._params = params
        self._forms: dict[str, list[Form]] = {}
        self._shared: list[Shared] = []
        self._leaves: list[Shared] = []

    def sink(self, p: Tensor) -> Sink:
        """Where the per-example gradients of a tracked tensor of this capture go."""
        name = ", ".join(p.reach) if isinstance(p, Shared) else _open[id(p)][1]
        forms = p.forms if isinstance(p, Shared) else self._forms.setdefault(name, [])

        def record(form: Form) -> None:
            self.expect(form.batch, f"parameter {name}")
            forms.append(form)

        return record

    def share(self, s: Shared) -> Shared:
        """Remember a tensor that was made of parameters alone."""
        _open[id(s)] = (self, s.label)
        self._shared.append(s)
        return s

    def leaf(self, t: Tensor) -> Tensor:
        """What stands for a tracked tensor where it meets the examples; see ``shared.cut_off``."""
        if not isinstance(t, Shared):
            return t
        made = cut_off(t)
        _open[id(made)] = (self, made.label)
        self._leaves.append(made)
        return made

    def settle(self) -> None:
        """Bring what shared tensors collected home to the parameters."""
        for s in self._shared:
            if s.forms:
                for name, form in pulled_back(s).items():
                    self._forms.setdefault(name, []).append(form)

    def close(self) -> None:
        """Let go of the shared tensors, and of the graphs behind them."""
        for s in (*self._shared, *self._leaves):
            _open.pop(id(s), None)
        self._shared, self._leaves = [], []

    def expect(self, batch: int, where: str) -> None:
        """The batch axis is proved, never inferred: every use must agree with the number of examples."""
        if self.examples is None:
            self.examples = batch
        if batch != self.examples:
            raise NoRuleError(
                f"Expected {self.examples} examples at {where}, found a leading dimension of {batch}: its "
                "gradient can't be told apart by example. Use it on tensors that keep the batch first "
                "(dpft.per_sample.expand gives such a copy of a parameter), or freeze it."
            )

    def __getitem__(self, name: str) -> Form:
        self.settle()
        if not self._forms.get(name):
            raise KeyError(f"{name}: no gradient was collected; trainable: {', '.join(self._params)}")
        forms = self._forms[name]
        forms[:] = [total(forms)]  # in place: the list is also where later uses go
        return forms[0]

    def __iter__(self) -> Iterator[str]:
        self.settle()
        return iter([name for name, forms in self._forms.items() if forms])

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def missing(self) -> tuple[str, ...]:
        """Trainable parameters that received no gradient."""
        found = set(self)
        return tuple(name for name in self._params if name not in found)

    def parameters(self, tracked: Tensor) -> dict[str, nn.Parameter]:
        """The parameters behind a tracked tensor: itself, or those that a shared tensor was made from."""
        if isinstance(tracked, Shared):
            return tracked.reach
        name = _open[id(tracked)][1]
        return {name: self._params[name]}


def is_tracked(t: Any) -> bool:
    """Whether ``t`` is a trainable parameter of an open capture, or made of such alone."""
    return type(t) is Tracked or type(t) is Shared  # isinstance goes through Python code of nn.Parameter


def owner(p: Any) -> tuple[Grads, str] | None:
    """The open capture that a tracked tensor belongs to, and its name there."""
    return _open.get(id(p)) if is_tracked(p) else None


def names_of(*tracked: Any) -> list[str]:
    """The names of tracked tensors, each from its own capture."""
    return [found[1] for t in tracked if (found := owner(t))]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, each once (a tied one under its first name), in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def capture(model: nn.Module, *, examples: int | None = None, uses: Uses | None = None) -> Iterator[Grads]:
    """Collect the per-example gradients of ``model``'s trainable parameters.

    Run forward and backward inside the block, on the *sum* of a vector of per-example losses::

        with capture(model) as grads:
            losses(model, batch).sum().backward()
        grads["head.weight"].dense()    # [B, *shape]

    ``p.grad`` is not touched. Tensors may be computed from parameters alone before they meet the examples: which ones,
    ``uses`` says (the preflight returns it), or else a forward pass of its own finds out at the model's first call.
    Raises :class:`PrivacyError` where a parameter is used in
    a way that has no rule, where the batch axis is not what it must be, or where an ordinary gradient was
    accumulated."""
    params = trainable(model)
    for name, p in params.items():
        if type(p) is not nn.Parameter:
            reason = "another capture is open" if isinstance(p, Tracked) else f"it is a {type(p).__name__}"
            raise PrivacyError(f"Can't track parameter {name}: {reason}. Expected a plain torch.nn.Parameter.")
    grads = Grads(params, examples, uses)
    before = {name: _grad_state(p) for name, p in params.items()}
    hook = model.register_forward_pre_hook(_read_batch(grads), with_kwargs=True)
    try:
        for name, p in params.items():
            _open[id(p)] = (grads, name)
            p.__class__ = Tracked
        yield grads
        grads.settle()
    finally:
        hook.remove()
        for p in params.values():
            _open.pop(id(p), None)
            p.__class__ = nn.Parameter
        grads.close()
    for name, p in params.items():
        if _grad_state(p) != before[name]:
            p.grad = None
            raise NoRuleError(
                f"Parameter {name} received an ordinary, unclipped gradient: some function reached it past "
                "its rule. The gradient was dropped; freeze the parameter or use it through a stock layer."
            )


def expand(p: Tensor, batch: int) -> Tensor:
    """``p`` as a batch of equal copies, [batch, *shape].

    The way to use a parameter that no stock layer holds (a gate, a soft prompt, a table of coefficients):
    its per-example gradient is then what autograd gives each copy. Outside a capture it is a plain view."""
    return expanded(p, batch, p.dim() + 1)


def expanded(p: Tensor, batch: int, ndim: int) -> Tensor:
    """As :func:`expand`, with dimensions of size one put behind the batch until there are ``ndim``; a ``p`` that
    has as many and a leading one is expanded along that."""
    found = owner(p)
    with torch._C.DisableTorchFunctionSubclass():
        if found is None:
            return copies(p, batch, ndim)
        grads, name = found
        grads.expect(batch, f"parameter {name}")
        return ExpandFn.apply(p, batch, ndim, grads.sink(p))  # type: ignore[no-any-return, no-untyped-call]


def _grad_state(p: nn.Parameter) -> tuple[int, int]:
    grad = p.grad
    return (0, 0) if grad is None else (id(grad), grad._version)


def _read_batch(grads: Grads) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        from dpft.per_sample.learn import learn  # which imports this module

        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 0]
        if tensors:
            grads.expect(tensors[0].shape[0], "the model's input")
            if grads.uses is None:
                untraced(learn)(module, grads, args, kwargs)

    return hook
