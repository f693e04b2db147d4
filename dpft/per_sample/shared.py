"""Tensors computed from parameters alone, before any example comes in: a product of factors, a row of a table
of positions, a prompt.

Such a tensor is treated as a parameter where it meets the examples, so its per-example gradient G [B, *shape]
is collected as a form. Afterwards G is pulled back through the little graph that made the tensor: one
vectorised backward pass gives the per-example gradients of the parameters. Exact, whatever the graph does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import NoRuleError
from dpft.per_sample.forms import Dense, Form, Rows, total
from dpft.per_sample.untraced import dispatched

PullBack = Callable[[Form], Mapping[str, Form]]
_AT_ONCE = 2**27  # numbers of G that are pulled back together


class Shared(Tensor):
    """A tensor made of parameters alone. It lives for one forward and backward pass.

    ``reach``: the parameters it was made from, by name; ``forms``: its per-example gradients so far;
    ``pull_back``: how these become gradients of the parameters, where there is a shorter way than autograd."""

    label: str
    reach: dict[str, nn.Parameter]
    forms: list[Form]
    pull_back: PullBack | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs)


def shared(t: Tensor, name: str, reach: dict[str, nn.Parameter], pull_back: PullBack | None = None) -> Shared:
    """``t``, which carries gradient to the parameters in ``reach`` and to nothing else, as a shared tensor."""
    made = t if isinstance(t, Shared) else t.as_subclass(Shared)
    made.label, made.reach, made.forms, made.pull_back = name, reach, [], pull_back
    return made


def cut_off(s: Shared) -> Shared:
    """``s`` as a leaf with the same forms. Where it meets the examples it must be one: the backward pass over
    the batch frees what it walks through, and the graph behind ``s`` is needed afterwards."""
    leaf = s.detach().requires_grad_().as_subclass(Shared)
    leaf.label, leaf.reach, leaf.forms, leaf.pull_back = s.label, s.reach, s.forms, s.pull_back
    return leaf


def name_for(function: str, parts: Sequence[str], reach: Mapping[str, nn.Parameter]) -> str:
    """A name that depends on how the tensor was made, the same in every forward pass."""
    how = hashlib.blake2s("|".join(parts).encode(), digest_size=6).hexdigest()
    return f"{function} #{how} of {next(iter(reach), '')}"


def of_rows(name: str, index: Tensor, rows: int) -> PullBack:
    """For a look-up ``table[index]`` that all examples share: each example's gradient touches those rows."""

    def pull(form: Form) -> dict[str, Form]:
        g = form.dense()
        g = g.reshape(g.shape[0], index.numel(), g.shape[-1])
        return {name: Rows(index.flatten().expand(g.shape[0], -1), g, rows).smaller()}

    return pull


def pulled_back(s: Shared) -> Mapping[str, Form]:
    """Per-example gradients of the parameters behind ``s``, from the forms that it collected.

    Raises :class:`NoRuleError` where the graph is gone (its activations were checkpointed)."""
    form = total(s.forms)
    s.forms.clear()
    with torch._C.DisableTorchFunctionSubclass():
        if s.pull_back is not None:
            return s.pull_back(form)
        chunk = max(1, _AT_ONCE // max(1, s.numel()))
        starts = range(0, max(1, form.batch), chunk)  # an empty batch is a piece too
        pieces = [_vjp(s, form.part(slice(i, i + chunk)).dense().to(s.dtype)) for i in starts]
        columns = {name: _joined([piece[i] for piece in pieces], torch.cat) for i, name in enumerate(s.reach)}
        return {name: Dense(g) for name, g in columns.items() if g is not None}


def _vjp(s: Shared, G: Tensor) -> list[Tensor | None]:  # [B, *s.shape] -> B gradients of each parameter
    parameters = list(s.reach.values())
    keep: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    if not len(G):
        return [p.new_zeros(0, *p.shape) for p in parameters]
    try:
        try:
            return list(torch.autograd.grad(s, parameters, G, is_grads_batched=True, **keep))
        except (RuntimeError, NotImplementedError):  # an operation that can't be vectorised
            rows = [torch.autograd.grad(s, parameters, g, **keep) for g in G]
            return [_joined([row[i] for row in rows], torch.stack) for i in range(len(parameters))]
    except RuntimeError as error:
        raise NoRuleError(
            f"A tensor made from {', '.join(s.reach)} alone can't be differentiated a second time, as it must be: keep "
            "it out of activation checkpointing, or freeze the parameter."
        ) from error


def _joined(pieces: list[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    """None where the parameter was not reached (it was detached on the way), which is so in all pieces or in none."""
    reached = [piece for piece in pieces if piece is not None]
    return join(reached) if reached else None
