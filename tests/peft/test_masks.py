"""Masks: exact counts, ties, and scores equal to those that autograd gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpft.errors import InputError
from dpft.peft.masks import (
    grasp_scores,
    keep_highest,
    magnitudes,
    random_scores,
    snip_scores,
    synflow_mask,
    synflow_scores,
)

WIDE = torch.float64
Pair = tuple[Tensor, Tensor]


def pairs(seed: int, *sizes: tuple[int, int]) -> list[Pair]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(m, d, generator=g, dtype=WIDE), torch.randn(d, m, generator=g, dtype=WIDE)) for m, d in sizes]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=4),
    share=st.floats(0, 1),
    values=st.integers(1, 50),
)
def test_exactly_so_many_stay_and_they_are_the_highest(
    seed: int, sizes: list[tuple[int, int]], share: float, values: int
) -> None:
    """Against sorting by hand, with few distinct scores: of equals the first stay, the best of each matrix always."""
    g = torch.Generator().manual_seed(seed)
    scores = [torch.randint(values, shape, generator=g).float() for shape in sizes]
    total = sum(s.numel() for s in scores)
    count = len(scores) + int(share * (total - len(scores)))
    masks = keep_highest(scores, count)
    assert [m.shape for m in masks] == [s.shape for s in scores]
    flat = [(float(v), i, j) for i, s in enumerate(scores) for j, v in enumerate(s.flatten())]
    best = {(*min((-v, j) for v, k, j in flat if k == i), i) for i in range(len(scores))}
    places = [(i, j) for _, j, i in best]
    rest = sorted((-v, i, j) for v, i, j in flat if (i, j) not in places)
    expected = {*places, *((i, j) for _, i, j in rest[: count - len(places)])}
    assert {(i, int(j)) for i, m in enumerate(masks) for j in m.flatten().nonzero()} == expected


def test_where_no_matrix_is_left_empty_the_threshold_is_global() -> None:
    scores = [torch.tensor([[9.0, 1.0, 8.0]]), torch.tensor([[2.0, 7.0]])]
    assert [m.tolist() for m in keep_highest(scores, 3)] == [[[True, False, True]], [[False, True]]]


def test_a_matrix_of_low_scores_keeps_its_best() -> None:
    """An empty matrix could not train, and the first step would be refused after the mask was paid for."""
    scores = [torch.tensor([[9.0, 5.0, 8.0]]), torch.tensor([[2.0, 3.0]])]
    assert [m.tolist() for m in keep_highest(scores, 3)] == [[[True, False, True]], [[False, True]]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        keep_highest([torch.tensor([1.0, bad])], 1)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_count_that_does_not_fit_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=r"method\.density"):
        keep_highest([torch.ones(2), torch.ones(2)], count)


def test_random_scores_are_the_generators() -> None:
    weights = [torch.zeros(3, 4), torch.zeros(4, 3)]
    a, b, c = (random_scores(weights, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])


def test_scores_by_their_formulas() -> None:
    w, g = torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 0.5]])
    assert magnitudes([w])[0].tolist() == [[1.0, 2.0]]
    assert snip_scores([w], [g])[0].tolist() == [[3.0, 1.0]]
    assert grasp_scores([w], [g])[0].tolist() == [[-3.0, -1.0]]


def by_autograd(pair: Pair) -> list[Tensor]:
    """|w dR/dw| of R = 1^T |W_u| |W_d| 1: an all-ones input through the absolute values, summed."""
    weights = [w.abs().requires_grad_() for w in pair]
    flow = torch.ones(pair[0].shape[1], dtype=WIDE)
    for w in weights:
        flow = w @ flow
    grads = torch.autograd.grad(flow.sum(), weights)
    return [(w * g).abs().detach() for w, g in zip(weights, grads, strict=True)]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 2)])
def test_synflow_equals_autograd(size: tuple[int, int]) -> None:
    (pair,) = pairs(0, size)
    for found, expected in zip(synflow_scores(pair), by_autograd(pair), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rounds", [1, 3, 100])
def test_synflow_prunes_in_rounds(rounds: int) -> None:
    """Algorithm 1 with autograd: after round k the density is density^(k/n), scored on what the round before left."""
    found = pairs(3, (4, 6), (4, 6), (4, 6))  # none is left empty: see below
    weights = [w for pair in found for w in pair]
    total, count = sum(w.numel() for w in weights), 40
    masks = [torch.ones_like(w) for w in weights]
    for k in range(1, rounds + 1):
        left = [w * m for w, m in zip(weights, masks, strict=True)]
        scores = [s for pair in zip(left[::2], left[1::2], strict=True) for s in by_autograd(pair)]
        keep = max(count, round(total * (count / total) ** (k / rounds)))
        flat = torch.cat([s.masked_fill(m == 0, -1).flatten() for s, m in zip(scores, masks, strict=True)])
        kept = torch.zeros(total, dtype=WIDE)
        kept[flat.argsort(descending=True, stable=True)[:keep]] = 1
        masks = [k.view(w.shape) for k, w in zip(kept.split([w.numel() for w in weights]), weights, strict=True)]
    assert all(torch.equal(a, b.bool()) for a, b in zip(synflow_mask(found, count, rounds), masks, strict=True))


def test_synflow_conserves_its_scores() -> None:
    """Tanaka et al., Theorem 1: what flows into a hidden unit flows out of it."""
    (pair,) = pairs(1, (4, 7))
    down, up = synflow_scores(pair)
    torch.testing.assert_close(down.sum(dim=1), up.sum(dim=0), rtol=1e-12, atol=0)


def test_synflow_in_rounds_leaves_no_unit_half_alive() -> None:
    """At high sparsity one round keeps weights that nothing flows through; the paper's rounds do not."""
    found = pairs(5, (8, 32), (8, 32))

    def alive(masks: list[Tensor]) -> float:
        pairs_of = zip(masks[::2], masks[1::2], strict=True)
        flowing = [m * s for pair in pairs_of for m, s in zip(pair, _ones(pair), strict=True)]
        return float(sum((f > 0).sum() for f in flowing)) / sum(int(m.sum()) for m in masks)

    def _ones(pair: tuple[Tensor, Tensor]) -> list[Tensor]:
        return synflow_scores((pair[0].double(), pair[1].double()))

    assert alive(synflow_mask(found, 40)) == 1.0
    assert alive(synflow_mask(found, 40, rounds=1)) < 1.0
