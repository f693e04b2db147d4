"""Which torch functions know how to keep a trainable parameter's gradient apart by example.

A rule takes the function's own arguments. It decides only *how* the parameter is used; the mathematics is
in ``functions.py``, and which functions get here is decided in ``dispatch.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpft.errors import NoRuleError
from dpft.per_sample.batches import tensors
from dpft.per_sample.capture import Grads, expanded, is_tracked, owner
from dpft.per_sample.functions import Conv2dFn, EmbeddingFn, LayerNormFn, LinearFn, Sink
from dpft.per_sample.one_each import one_copy_each

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    def register(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, f))
        return f

    return register


def function_name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    # A property's getter is called __get__; its descriptor knows which.
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name


def carries_gradient(out: Any) -> bool:
    if isinstance(out, (tuple, list)):
        return any(carries_gradient(o) for o in out)
    # A parameter handed back as it is (``p.requires_grad_()``) is still tracked.
    return isinstance(out, Tensor) and out.requires_grad and not is_tracked(out)


def no_rule(func: Any, args: Any, kwargs: Any) -> NoRuleError:
    tracked = [t for t in tensors((list(args), kwargs)) if is_tracked(t)]
    names = dict.fromkeys(n for t in tracked for n in grads_of(t).parameters(t))
    return NoRuleError(
        f"No per-example rule for {func if isinstance(func, str) else function_name(func)} on parameter "
        f"{', '.join(names) or '?'}: "
        "use the parameter through a stock layer (Linear, Embedding, LayerNorm, ...) or through "
        "dpft.per_sample.expand(parameter, batch), or freeze it."
    )


def _sink(p: Any) -> Sink | None:
    found = owner(p)
    return None if found is None else found[0].sink(p)


def _plain(x: Tensor, name: str) -> Tensor:
    """A layer's input must be an activation; a parameter there would be a use without a rule."""
    if is_tracked(x):
        raise no_rule(name, (x,), {})
    return x


def sinks(name: str, *params: Tensor | None) -> tuple[Sink | None, ...]:
    """Where the gradients of a layer's own tensors go. One that is not tracked must carry no gradient: a rule
    gives none to it."""
    for p in params:
        if p is not None and p.requires_grad and not is_tracked(p):
            raise no_rule(f"{name} (with a weight or bias computed from activations)", params, {})
    return tuple(_sink(p) for p in params)


def product_input(x: Tensor, name: str) -> Tensor:
    """The input of a matrix product, in the dtype that autocast would give it (it leaves float64 alone)."""
    x = _plain(x, name)
    on = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(x.device.type)) if on else x


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = product_input(input, "linear")
    if x.dim() < 2:
        raise no_rule("linear (without a batch axis)", (weight, bias), {})
    out: Tensor = LinearFn.apply(x, weight, bias, False, *sinks("linear", weight, bias))  # type: ignore[no-untyped-call]
    return out


@rule(torch.addmm)
def conv1d(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """GPT-2's Conv1D: ``addmm(bias [O], x [B*T, I], weight [I, O])``. It flattens the batch, so the number
    of examples must be known; that the rows are example by example is what the preflight proves."""
    x = product_input(mat1, "addmm")
    B = grads_of(input, mat2).examples
    if B is None or input.dim() != 1 or (beta, alpha) != (1, 1) or (B and x.shape[0] % B):
        raise no_rule("addmm (other than Conv1D's, on a known number of examples)", (input, mat2), {})
    T = x.shape[0] // B if B else 0
    x = x.reshape(B, T, x.shape[1])
    out: Tensor = LinearFn.apply(x, mat2, input, True, *sinks("addmm", mat2, input))  # type: ignore[no-untyped-call]
    return out.reshape(B * T, mat2.shape[1])


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """``x @ W`` with a matrix W on the right."""
    if is_tracked(input) or other.dim() != 2 or input.dim() < 2:
        other_way: Tensor = _without(torch.matmul, "matmul (other than activation @ matrix)", input, other)
        return other_way
    out: Tensor = LinearFn.apply(product_input(input, "matmul"), other, None, True, _sink(other), None)  # type: ignore[no-untyped-call]
    return out


@rule(F.conv2d)
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Patch embeddings: a Linear over patches."""
    if groups != 1 or isinstance(padding, str) or input.dim() != 4:
        raise no_rule("conv2d (with groups, padding by name, or without a batch axis)", (weight, bias), {})
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    x = product_input(input, "conv2d")
    out: Tensor = Conv2dFn.apply(x, weight, bias, geometry, *sinks("conv2d", weight, bias))  # type: ignore[no-untyped-call]
    return out


@rule(F.embedding)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        raise no_rule("embedding with max_norm or scale_grad_by_freq (they couple examples)", (weight,), {})
    out: Tensor = EmbeddingFn.apply(weight, input, padding_idx, _sink(weight))  # type: ignore[no-untyped-call]
    return out


@rule(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    x = _plain(input, "layer_norm")
    if x.dim() <= len(normalized_shape):
        raise no_rule("a layer without a batch axis", (weight, bias), {})
    into = sinks("layer_norm", weight, bias)
    out: Tensor = LayerNormFn.apply(x, normalized_shape, weight, bias, eps, *into)  # type: ignore[no-untyped-call]
    return out


@rule(F.rms_norm, torch.rms_norm)
def rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    y = F.rms_norm(_plain(input, "rms_norm"), normalized_shape, None, eps)
    return y if weight is None else y * _against(weight, y)


# Written out by hand in many models (RMSNorm's ``weight * x``, a gate, a bias added by itself).
ELEMENTWISE = {
    torch.mul, torch.add, torch.sub, torch.div,
    Tensor.mul, Tensor.add, Tensor.sub, Tensor.div,
    Tensor.__mul__, Tensor.__rmul__, Tensor.__add__, Tensor.__radd__,
    Tensor.__sub__, Tensor.__rsub__, Tensor.__truediv__, Tensor.__rtruediv__,
}  # fmt: skip


def elementwise(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Broadcasting a parameter against an activation that has the batch first: expand it along the batch."""
    if not fits(*args):
        raise no_rule(func, args, kwargs)
    activation = next(a for a in args if not is_tracked(a))
    return func(*(_against(a, activation) for a in args), **kwargs)


def fits(*args: Any) -> bool:
    """One parameter against one activation, over whose first dimension, the batch, it repeats."""
    tracked = [a for a in args if is_tracked(a)]
    others = [a for a in args if isinstance(a, Tensor) and not is_tracked(a)]
    return len(args) == 2 and len(tracked) == len(others) == 1 and _broadcasts(tracked[0], others[0])


def _broadcasts(p: Tensor, activation: Tensor) -> bool:
    return activation.dim() > p.dim() or (activation.dim() == p.dim() > 0 and p.shape[0] == 1)


def _against(p: Tensor, activation: Tensor) -> Tensor:
    """A tracked parameter, expanded to broadcast over ``activation`` [B, ...]; anything else as it is."""
    if not is_tracked(p):
        return p
    if not _broadcasts(p, activation):  # it would reach over the batch, as LayerNorm(x.shape) does
        raise no_rule("a layer without a batch axis", (p,), {})
    return expanded(p, activation.shape[0], activation.dim())


def _without(func: Any, words: str, *args: Tensor) -> Any:
    """What a rule can't do: one copy an example where it is known which tensors hold examples, else an error."""
    grads = grads_of(*args)
    if grads.uses is None:
        raise no_rule(words, args, {})
    return one_copy_each(func, args, {}, grads.examples or 0, [a for a in args if not is_tracked(a)])


def grads_of(*params: Any) -> Grads:
    return next(found[0] for p in params if (found := owner(p)))
