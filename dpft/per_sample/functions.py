"""Autograd functions that keep an example's gradient apart from its neighbours'.

Each computes the ordinary forward pass. In the backward pass it hands the per-example gradient of its
parameter to ``sink`` as a form and returns no gradient for the parameter itself, so nothing unclipped
ever reaches ``p.grad``. Collection happens in backward only: activation checkpointing runs the forward
pass twice and the backward pass once.

Shape legend: B examples, T uses per example, I inputs, O outputs, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from dpft.per_sample.forms import Dense, Form, Outer, Rows
from dpft.per_sample.precision import wide

Sink = Callable[[Form], None]


def by_token(x: Tensor) -> Tensor:
    """[B, ..., N] -> [B, T, N], off the graph; works for an empty batch, where ``reshape(B, -1, N)`` does not."""
    x = x.detach()
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


class LinearFn(torch.autograd.Function):
    """``y = x W^T + b`` with W [O,I], or ``y = x W + b`` with W [I,O] when ``transposed`` (GPT-2's Conv1D).

    Rules: dW_b = sum_t g_t a_t^T (transposed: a_t g_t^T), db_b = sum_t g_t."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [B, ..., I]
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        weight_sink: Sink | None,
        bias_sink: Sink | None,
    ) -> Tensor:
        ctx.sinks, ctx.transposed, ctx.x_shape = (weight_sink, bias_sink), transposed, x.shape
        matrix = weight.T if transposed else weight
        # The input is needed for dW alone; a bias-only use keeps nothing.
        ctx.save_for_backward(x if weight_sink else None, weight)
        return F.linear(x, matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # under checkpointing this runs the forward pass again, with its rules
        with torch._C.DisableTorchFunctionSubclass():
            weight_sink, bias_sink = ctx.sinks
            if weight_sink is not None:
                pair = (by_token(x), by_token(g)) if ctx.transposed else (by_token(g), by_token(x))
                weight_sink(Outer(*pair).smaller())
            if bias_sink is not None:
                bias_sink(Dense(by_token(g).sum(dim=1)))
            dx = None
            if ctx.needs_input_grad[0]:
                matrix = weight.T if ctx.transposed else weight
                # By tokens: of a g that can't be viewed so torch would copy the matrix for each example.
                dx = (g.flatten(0, -2) @ matrix.to(g.dtype)).view(ctx.x_shape)
        return dx, None, None, None, None, None


class EmbeddingFn(torch.autograd.Function):
    """Table look-up. Rule: row ``index_t`` receives g_t; the padding row receives nothing."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor, padding_idx: int | None, sink: Sink) -> Tensor:
        ctx.sink, ctx.rows = sink, weight.shape[0]
        ctx.padding = padding_idx if padding_idx is None or padding_idx >= 0 else padding_idx + ctx.rows
        ctx.save_for_backward(index)
        return F.embedding(index, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:
        (index,) = ctx.saved_tensors
        with torch._C.DisableTorchFunctionSubclass():
            flat, g = index.unsqueeze(-1).flatten(1), by_token(g)
            if ctx.padding is not None:
                g = g.masked_fill((flat == ctx.padding).unsqueeze(2), 0.0)
            ctx.sink(Rows(flat, g, ctx.rows).smaller())
        return None, None, None, None


class Conv2dFn(torch.autograd.Function):
    """2-D convolution without groups. Over patches it is a Linear: a [B, P, I*k*k], g [B, P, O]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [B, I, H, W]
        weight: Tensor,  # [O, I, k, k]
        bias: Tensor | None,
        geometry: dict[str, Any],
        weight_sink: Sink | None,
        bias_sink: Sink | None,
    ) -> Tensor:
        ctx.sinks, ctx.geometry, ctx.x_shape = (weight_sink, bias_sink), geometry, x.shape
        ctx.save_for_backward(x if weight_sink else None, weight)
        return F.conv2d(x, weight, bias, **geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # under checkpointing this runs the forward pass again, with its rules
        with torch._C.DisableTorchFunctionSubclass():
            weight_sink, bias_sink = ctx.sinks
            by_patch = g.flatten(2).mT
            if weight_sink is not None:
                patches = F.unfold(x, weight.shape[2:], **ctx.geometry).mT
                weight_sink(Outer(by_patch, patches, weight.shape).smaller())
            if bias_sink is not None:
                bias_sink(Dense(by_patch.sum(dim=1)))
            dx = None
            if ctx.needs_input_grad[0]:
                dx = conv2d_input(ctx.x_shape, weight.to(g.dtype), g, **ctx.geometry)  # type: ignore[no-untyped-call]
        return dx, None, None, None, None, None


class LayerNormFn(torch.autograd.Function):
    """``y = w * xhat + b``, where xhat is x [B, ..., *shape] normalised over its last dimensions, ``shape``.

    Rules: dw_b = sum_t g_t * xhat_t, db_b = sum_t g_t. As in torch's own, x is kept and not xhat, which is made
    again in float32 or wider: one activation a layer, and the same fused products of half precision."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        weight_sink: Sink | None,
        bias_sink: Sink | None,
    ) -> Tensor:
        ctx.sinks, ctx.shape, ctx.eps = (weight_sink, bias_sink), list(shape), eps
        ctx.save_for_backward(x, weight)
        return F.layer_norm(x, ctx.shape, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # under checkpointing this runs the forward pass again, with its rules
        with torch._C.DisableTorchFunctionSubclass():
            weight_sink, bias_sink = ctx.sinks
            kept, dtype, g = wide(x), x.dtype, wide(g)
            tokens = tuple(range(1, x.dim() - len(ctx.shape)))  # the dimensions to sum over; none is all for torch
            xhat, mean, rstd = torch.native_layer_norm(kept, ctx.shape, None, None, ctx.eps)
            if weight_sink is not None:
                each = xhat.mul_(g)
                weight_sink(Dense(each.sum(dim=tokens) if tokens else each))
            del xhat
            if bias_sink is not None:
                bias_sink(Dense(g.sum(dim=tokens) if tokens else g))
            dx = None
            if ctx.needs_input_grad[0]:
                scale, mask = None if weight is None else weight.to(g.dtype), [True, False, False]
                back = torch.ops.aten.native_layer_norm_backward
                dx = back(g, kept, ctx.shape, mean, rstd, scale, None, mask)[0].to(dtype)
        return dx, None, None, None, None, None, None


def copies(p: Tensor, batch: int, ndim: int) -> Tensor:
    """``p`` as ``batch`` equal copies with ``ndim`` dimensions, the batch first; a view."""
    if p.dim() == ndim and p.shape[0] == 1:
        return p.expand(batch, *p.shape[1:])
    ones = (1,) * (ndim - 1 - p.dim())
    return p.view(1, *ones, *p.shape).expand(batch, *ones, *p.shape)


class ExpandFn(torch.autograd.Function):
    """A parameter as ``B`` equal copies [B, 1, ..., 1, *shape] with ``ndim`` dimensions.

    Rule for everything without a rule of its own: whatever is computed with the copies, autograd sums
    each example's gradient onto its own copy."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, batch: int, ndim: int, sink: Sink) -> Tensor:
        ctx.sink, ctx.shape = sink, p.shape
        return copies(p, batch, ndim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:
        ctx.sink(Dense(g.reshape(g.shape[0], *ctx.shape)))
        return None, None, None, None
