"""A matrix as a low-rank part and a sparse one, W = U V + S + rest: greedy bilateral factors, the largest of the rest.

After the idea of GreBsmo (Zhou and Tao 2013, "Greedy bilateral sketch, completion and smoothing"): the rank of U V
grows by one direction at a time, and at each size the two factors and S are brought to fit by turns,

    U = orthonormal basis of (W - S) V^T,   V = U^T (W - S),   S = the n largest entries of W - U V, 0 elsewhere,

so that S collects what no low-rank matrix of that size can say. GreBsmo shrinks W - U V by a threshold instead (0.01,
for BERT's weights); with a number there is nothing to scale to a model, and nothing of an entry in S is left outside
it, where a spare direction of U V would take it up, more of it with each turn. Data-free: the pretrained weights are
all that is looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

TURNS = 2  # at each rank
LAST_TURNS = 30  # at the full rank, at most: fewer where S stays where it is


@torch.no_grad()
def decompose(weight: Tensor, rank: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``weight`` [O, I] -> U [O, r], V [r, I], S [O, I], float32 on the processor; r is ``rank`` or the smaller side,
    and at most ``count`` entries of S are not 0. ``generator`` draws directions; the same one gives the same parts."""
    W = weight.detach().to("cpu", torch.float32)
    full, V, S = min(rank, *W.shape), torch.empty(0, W.shape[1]), torch.zeros_like(W)
    while len(V) < full:
        V = torch.cat([V, _another(W - S, V, generator)])
        for _ in range(TURNS):
            U, V, S = _turn(W, V, S, count)
    for _ in range(LAST_TURNS):
        before = S
        U, V, S = _turn(W, V, S, count)
        if torch.equal(before != 0, S != 0):
            break
    return U, V, S


def _turn(W: Tensor, V: Tensor, S: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    U = torch.linalg.qr((W - S) @ V.T).Q
    V = U.T @ (W - S)
    rest = W - U @ V
    chosen = largest(rest, count)
    return U, V, torch.zeros_like(rest.flatten()).index_copy(0, chosen, rest.flatten()[chosen]).view_as(rest)


def largest(values: Tensor, count: int) -> Tensor:
    """Positions [count] of the entries of greatest size in ``values``, laid out flat, in rising order."""
    return torch.topk(values.abs().flatten(), min(count, values.numel())).indices.sort().values


def _another(rest: Tensor, V: Tensor, generator: torch.Generator) -> Tensor:
    """A direction [1, I] in which ``rest`` is strong and that ``V`` has not: one power iteration."""
    if len(V):
        basis = torch.linalg.qr(V.T).Q
        rest = rest - (rest @ basis) @ basis.T
    drawn = torch.randn(rest.shape[1], 1, generator=generator)
    found: Tensor = rest.T @ (rest @ drawn)
    return torch.nn.functional.normalize(found, dim=0).T
