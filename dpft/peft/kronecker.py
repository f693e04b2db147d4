"""A Linear whose weight is a sum of Kronecker products, never built, and its rule.

    W = sum_i A_i ⊗ (s_i t_i^T)   [I, O]        A [n,n,n], s [n, I/n], t [n, O/n]

    x as X [n, I/n] ──► u = X s^T ──► v[c,i] = sum_a A[i,a,c] u[a,i] ──► Y = v t  [n, O/n] ──► y = Y row by row

Costs n (I + O) + n^3 products a token instead of I O, and where n is small n^4 for n^3 (see ``across``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from dpft.per_sample.forms import Dense, Form, Outer
from dpft.per_sample.functions import Sink, by_token
from dpft.per_sample.precision import wide
from dpft.per_sample.rules import no_rule, product_input, rule, sinks

_ZEROS_PAY = 8


def kronecker_linear(x: Tensor, A: Tensor, s: Tensor, t: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = x W + bias``, [B, ..., I] -> [B, ..., O]; A [n,n,n], s [n, I/n], t [n, O/n], bias [O]."""
    if has_torch_function((x, A, s, t, bias)):
        out: Tensor = handle_torch_function(kronecker_linear, (x, A, s, t, bias), x, A, s, t, bias)
        return out
    n = len(s)
    u = (x.reshape(-1, s.shape[1]) @ s.T).view(-1, n * n)
    y: Tensor = (across(u, spread(A)).view(-1, n) @ t).view(*x.shape[:-1], t.numel())
    return y if bias is None else y + bias.to(y.dtype)  # as a Linear's, under autocast in half precision


def spread(A: Tensor) -> Tensor:
    """For :func:`across`: A [n,n,n], for a small n as a matrix [n^2, n^2] that is zero where i differs. Its zeros cost
    less than laying out every token's numbers by i, and back."""
    n = len(A)
    if n > _ZEROS_PAY:
        return A
    return torch.diag_embed(A.movedim(0, 2), dim1=1, dim2=3).reshape(n * n, n * n)


def across(u: Tensor, S: Tensor) -> Tensor:  # [N, n^2] -> [N, n^2]
    """v[c,i] = sum_a A[i,a,c] u[a,i]; with ``S.mT`` back from c to a."""
    if S.dim() == 2:
        return u @ S
    n = len(S)
    return torch.einsum("xai,iac->xci", u.view(-1, n, n), S).flatten(-2)


def pairs(u: Tensor, dv: Tensor, n: int) -> Tensor:  # [B, T, n^2] twice -> [B,n,n,n]
    """Per-example gradients of A, [b,i,a,c]: sum over tokens of u[a,i] dv[c,i]. What i has with another j goes to waste
    where n is small, as above."""
    if n > _ZEROS_PAY:
        B, T = u.shape[:2]
        return torch.einsum("btai,btci->biac", u.view(B, T, n, n), dv.view(B, T, n, n))
    return (u.mT @ dv).view(-1, n, n, n, n).diagonal(dim1=2, dim2=4).movedim(3, 1).contiguous()


def factor_forms(x: Tensor, g: Tensor, A: Tensor, s: Tensor, t: Tensor) -> tuple[list[Form], Tensor]:
    """Per-example gradients of A, s, t and the bias, and the gradient of x [B, T, I], from x and that of y, [B, T, O].

    With G the gradient of Y, dv = G t^T and du as v from u, by A^T: dA_b[i] = sum over tokens of u_i dv_i^T, ds_b of
    du^T X, dt_b of v^T G, the bias's of g. In float32 or wider."""
    g = wide(g)
    S, s, t = (p.to(g.dtype) for p in (spread(A), s, t))
    n, (B, T) = len(s), g.shape[:2]
    X, G = x.to(g.dtype).reshape(B * T * n, s.shape[1]), g.reshape(B * T * n, t.shape[1])
    u, dv = (X @ s.T).view(B * T, n * n), (G @ t.T).view(B * T, n * n)
    du, v = across(dv, S.mT), across(u, S)
    forms: list[Form] = [
        Dense(pairs(u.view(B, T, n * n), dv.view(B, T, n * n), n)),
        Outer(du.view(B, T * n, n), X.view(B, T * n, s.shape[1])).smaller(),
        Outer(v.view(B, T * n, n), G.view(B, T * n, t.shape[1])).smaller(),
        Dense(g.sum(dim=1)),
    ]
    return forms, (du.view(-1, n) @ s).view(B, T, s.numel())


class KroneckerFn(torch.autograd.Function):
    """Rules: :func:`factor_forms`. Keeps x alone; u and v, n^2 numbers a token, are made again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, s: Tensor, t: Tensor, bias: Tensor | None, into: tuple[Sink | None, ...]
    ) -> Tensor:
        ctx.into = into
        ctx.save_for_backward(x, A, s, t)
        return kronecker_linear(x, A, s, t, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, A, s, t = ctx.saved_tensors  # under checkpointing this runs the forward pass again, with its rules
        with torch._C.DisableTorchFunctionSubclass():
            forms, dx = factor_forms(by_token(x), by_token(g), A, s, t)
            for into, form in zip(ctx.into, forms, strict=True):
                if into is not None:
                    into(form)
            return dx.view(x.shape).to(x.dtype), None, None, None, None, None


@rule(kronecker_linear)
def _kronecker_linear(x: Tensor, A: Tensor, s: Tensor, t: Tensor, bias: Tensor | None = None) -> Tensor:
    x = product_input(x, "kronecker_linear")
    if x.dim() < 2:
        raise no_rule("kronecker_linear (without a batch axis)", (A, s, t, bias), {})
    out: Tensor = KroneckerFn.apply(x, A, s, t, bias, sinks("kronecker_linear", A, s, t, bias))  # type: ignore[no-untyped-call]
    return out
