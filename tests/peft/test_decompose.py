"""The low-rank + sparse split: a planted one comes back, also with directions to spare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpft.peft.decompose import decompose, largest


def planted(shape: tuple[int, int], rank: int, count: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """W, its low-rank part and the flat positions of its sparse one, whose entries are as large as usual ones of L."""
    g = torch.Generator().manual_seed(1)
    low = torch.randn(shape[0], rank, generator=g) @ torch.randn(rank, shape[1], generator=g)
    where = torch.randperm(low.numel(), generator=g)[:count].sort().values
    sparse = (
        torch.zeros(low.numel()).index_fill(0, where, 2.5 * rank**0.5) * torch.randn(low.numel(), generator=g).sign()
    )
    return low + sparse.view(shape) + noise * torch.randn(shape, generator=g), low, where


@pytest.mark.parametrize("spare", [0, 3, 10])
@pytest.mark.parametrize(("shape", "noise"), [((128, 128), 0.0), ((128, 128), 0.05), ((96, 200), 0.05)], ids=str)
def test_a_planted_split_is_found(shape: tuple[int, int], noise: float, spare: int) -> None:
    """Every place of the sparse part, which the largest weights alone do not show; and the low-rank part."""
    W, low, where = planted(shape, 6, 40, noise)
    U, V, S = decompose(W, 6 + spare, 40, torch.Generator().manual_seed(0))
    assert torch.equal(S.flatten().nonzero().flatten(), where)
    assert (U.shape, V.shape) == ((shape[0], 6 + spare), (6 + spare, shape[1]))
    assert float((U @ V - low).norm() / low.norm()) < 0.02 + noise / 2
    by_size = set(largest(W, 40).tolist())
    assert len(by_size & set(where.tolist())) < 20


def test_the_parts_are_what_they_are_called() -> None:
    W = torch.randn(30, 20, generator=torch.Generator().manual_seed(3))
    U, V, S = decompose(W, 4, 15, torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_rank(U @ V) == 4
    assert int((S != 0).sum()) == 15
    torch.testing.assert_close(S[S != 0], (W - U @ V)[S != 0])  # nothing of an entry stays behind
    assert float(S[S != 0].abs().min()) >= float((W - U @ V)[S == 0].abs().max())
    # No worse than the best low-rank matrix by itself, with what is then largest taken off.
    left, values, right = torch.linalg.svd(W)
    rest = (W - (left[:, :4] * values[:4]) @ right[:4]).flatten()
    rest[largest(rest, 15)] = 0
    assert float((W - U @ V - S).norm()) < 1.05 * float(rest.norm())


def test_the_same_generator_gives_the_same_split() -> None:
    W = torch.randn(40, 40, generator=torch.Generator().manual_seed(3))
    first, second = (decompose(W, 5, 10, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "W",
    [torch.zeros(6, 4), torch.ones(6, 4), torch.eye(5), torch.arange(6.0).sin().view(3, 2)],
    ids=["zeros", "ones", "identity", "smaller than the rank"],
)
def test_odd_matrices_are_split_too(W: Tensor) -> None:
    """Without weights, of rank one, sparse alone, smaller than the rank: finite parts whose sum is W."""
    U, V, S = decompose(W, 8, 5, torch.Generator().manual_seed(0))
    assert all(bool(part.isfinite().all()) for part in (U, V, S))
    torch.testing.assert_close(U @ V + S, W, atol=1e-5, rtol=0)


def test_number_types_and_the_weight_itself() -> None:
    W = torch.randn(20, 20, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(3))
    before = W.clone()
    parts = decompose(W, 3, 5, torch.Generator().manual_seed(0))
    assert torch.equal(W, before)
    assert {part.dtype for part in parts} == {torch.float32}


def test_largest_by_size_in_rising_order() -> None:
    assert largest(torch.tensor([[1.0, -9.0], [3.0, 2.0]]), 2).tolist() == [1, 2]
    assert largest(torch.tensor([1.0]), 5).tolist() == [0]
