"""B1, B2, B5, A9: the clipped sum, however the batch is cut, moves by at most the clip for each example."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpft.engine.clipping import clip_factors, clipped_sum, scaled
from dpft.engine.collect import collect
from dpft.per_sample import Dense, Form, per_example_gradients
from dpft.per_sample.batches import examples_in, take
from dpft.per_sample.oracle import clipped_sum as true_clipped_sum

Loss = Callable[[nn.Module, Any], Tensor]


def flat(sums: Mapping[str, Tensor | Form]) -> Tensor:
    """In the order of the names: gradients are collected in the order of the backward pass."""
    dense = {name: part.dense() if isinstance(part, Form) else part for name, part in sums.items()}
    return torch.cat([dense[name].double().flatten() for name in sorted(dense)])


def without(batch: Any, i: int) -> Any:
    return {name: torch.cat([t[:i], t[i + 1 :]]) for name, t in batch.items()}


def one_piece(model: nn.Module, loss: Loss, part: Any, bound: float) -> Tensor:
    grads, _ = collect(model, loss, part, expected=examples_in(part))
    return flat(clipped_sum(dict(grads), bound)[0])


def every_split(model: nn.Module, loss: Loss, batch: Any, bound: float) -> list[Tensor]:
    """S(D), the clipped sum over micro-batches, for every way of cutting the batch. A piece is summed once."""

    @cache
    def piece(first: int, end: int) -> Tensor:
        return one_piece(model, loss, take(batch, slice(first, end)), bound)

    return [
        torch.stack([piece(rows.start, rows.stop) for rows in pieces]).sum(dim=0)
        for pieces in splits(examples_in(batch))
    ]


def splits(n: int) -> Iterator[list[slice]]:
    """Every way of cutting ``n`` examples in a row into pieces: 2 ** (n - 1)."""
    for cuts in range(2 ** max(0, n - 1)):
        ends = [i + 1 for i in range(n - 1) if cuts >> i & 1] + [n]
        yield [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def natural(model: nn.Module, loss: Loss, batch: Any) -> tuple[dict[str, Tensor], float]:
    """The truth's gradients, and their largest norm."""
    truth = per_example_gradients(model, loss, batch)
    norms = torch.stack([g.flatten(1).square().sum(dim=1) for g in truth.values()]).sum(dim=0).sqrt()
    return truth, float(norms.max())


@pytest.mark.parametrize("share", [1e-3, 0.5, 10.0], ids=["all clipped", "some clipped", "none clipped"])
def test_every_split_of_a_batch_gives_the_oracles_clipped_sum(
    share: float, tiny_text: nn.Module, text_loss: Loss, text_batch: Any, close: Callable[..., None]
) -> None:
    """A4, B1, B5."""
    truth, largest = natural(tiny_text, text_loss, text_batch)
    expected = flat(true_clipped_sum(truth, share * largest))
    for found in every_split(tiny_text, text_loss, text_batch, share * largest):
        close(found, expected)


@pytest.mark.parametrize("share", [1e-3, 0.5, 10.0], ids=["all clipped", "some clipped", "none clipped"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_leaving_one_example_out_moves_the_sum_by_at_most_the_clip(
    share: float, dtype: torch.dtype, tiny_text: nn.Module, text_loss: Loss, text_batch: Any
) -> None:
    """LOO: B1, A3, A8. For each example, and every split of the batch with it and without it."""
    model = tiny_text.to(dtype)
    bound = share * natural(model, text_loss, text_batch)[1]
    whole = every_split(model, text_loss, text_batch, bound)
    for i in range(5):
        for rest in every_split(model, text_loss, without(text_batch, i), bound):
            assert max(float((s - rest).norm()) for s in whole) <= bound * (1 + 1e-4)


def test_the_instrument_sees_a_coupled_loss(tiny_text: nn.Module, text_loss: Loss, text_batch: Any) -> None:
    """LOO fires on a planted fault: losses weighted by the number of examples (A3, A8)."""

    def coupled(model: nn.Module, batch: Any) -> Tensor:
        return text_loss(model, batch) * (9 - 2 * len(batch["labels"]))  # -1 at five, 1 at four

    def moved(loss: Loss) -> float:
        """How far leaving out one example moves the sum, in units of a bound that clips."""
        bound = 0.1 * natural(tiny_text, text_loss, text_batch)[1]
        whole = one_piece(tiny_text, loss, text_batch, bound)
        rest = [one_piece(tiny_text, loss, without(text_batch, i), bound) for i in range(5)]
        return max(float((whole - r).norm()) for r in rest) / bound

    assert moved(text_loss) <= 1 + 1e-9
    assert moved(coupled) > 1.2


def test_example_that_is_huge_everywhere_is_clipped_once_over_all_parameters() -> None:
    """B2: one flat norm; a full bound for each of 9 parameters would be three times too much."""
    forms = {str(i): Dense(torch.full((2, 3), 1e6)) for i in range(9)}
    sums, sq = clipped_sum({name: f.keep(torch.tensor([True, False])) for name, f in forms.items()}, 0.7)
    assert float(flat(sums).norm()) == pytest.approx(0.7, rel=1e-6)
    assert sq.tolist() == [pytest.approx(27e12), 0.0]


@pytest.mark.parametrize("bad", [False, True])
def test_each_form_is_gone_before_the_next_sum_is_made(bad: bool) -> None:
    """Of all weights, forms and sums together would be the peak of a step."""
    alive: list[int] = []

    class Watched(Dense):
        def summed(self, c: Tensor) -> Dense:
            alive.append(sum(form() is not None for form in watched))
            return super().summed(c)

        def keep(self, mask: Tensor) -> Watched:
            made = Watched(super().keep(mask).g)
            watched.append(weakref.ref(made))
            return made

    forms: dict[str, Form] = {
        str(i): Watched(torch.full((2, 3), math.nan if bad and i == 1 else 1.0)) for i in range(4)
    }
    watched = [weakref.ref(form) for form in forms.values()]
    sums, _ = clipped_sum(forms, 1.0)
    assert (list(sums), forms) == (["0", "1", "2", "3"], {})
    assert alive == [4, 3, 2, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_example_counts_as_zero_in_every_parameter(bad: float) -> None:
    """A9: one bad coordinate of one parameter takes the whole example out, and no other."""
    a, b = torch.randn(3, 4), torch.randn(3, 2, 2)
    others = {"a": Dense(a[[0, 2]]), "b": Dense(b[[0, 2]])}
    expected, _ = clipped_sum(others, 0.5)
    a[1, 3] = bad
    sums, sq = clipped_sum({"a": Dense(a), "b": Dense(b)}, 0.5)
    for name in sums:
        torch.testing.assert_close(sums[name].dense(), expected[name].dense())
    assert not math.isfinite(float(sq[1]))


def test_non_finite_activation_reaches_no_other_example(
    tiny_text: nn.Module, text_loss: Loss, text_batch: Any, close: Callable[..., None]
) -> None:
    """A9: through a whole model, every form included."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return text_loss(model, batch) * batch["scale"]

    scale = torch.ones(5, dtype=torch.float64)
    scale[2] = math.inf
    found = one_piece(tiny_text, loss, {**text_batch, "scale": scale}, 0.3)
    close(found, one_piece(tiny_text, text_loss, without(text_batch, 2), 0.3))


@given(st.floats(0, 1e300), st.floats(1e-6, 1e6))
def test_factor_times_norm_never_exceeds_the_bound(sq: float, bound: float) -> None:
    """B1: one rounding of float64 and the square root's: 1e-15."""
    factor = float(clip_factors(torch.tensor([sq], dtype=torch.float64), bound))
    assert 0 <= factor <= 1
    assert factor * math.sqrt(sq) <= bound * (1 + 1e-15)
    assert math.sqrt(sq) > bound or factor == 1


def test_factors_at_the_edges() -> None:
    """A10: never nan."""
    sq = torch.tensor([0.0, math.inf, math.nan, 4.0, 5e-324], dtype=torch.float64)
    assert clip_factors(sq, 1.0).tolist() == [1.0, 0.0, 0.0, 0.5, 1.0]


def test_empty_micro_batch_sums_to_zeros() -> None:
    """D2."""
    sums, sq = clipped_sum({"a": Dense(torch.zeros(0, 3)), "b": Dense(torch.zeros(0))}, 1.0)
    assert sums["a"].dense().tolist() == [[0.0] * 3]
    assert sums["b"].dense().tolist() == [0.0]
    assert sq.shape == (0,)


def test_oracle_clips_scalars_and_examples_without_gradient() -> None:
    """The truth itself: a scalar parameter, a zero gradient, an empty batch."""
    sums = true_clipped_sum({"gate": torch.tensor([3.0, 0.0]), "w": torch.tensor([[4.0], [0.0]])}, 1.0)
    assert float(sums["gate"]) == pytest.approx(0.6)
    assert float(sums["w"]) == pytest.approx(0.8)
    assert true_clipped_sum({"w": torch.zeros(0, 2)}, 1.0)["w"].tolist() == [0.0, 0.0]


@given(st.floats(0, 1e300), st.floats(1e-6, 1e6))
def test_automatic_clipping_never_exceeds_the_bound_and_is_its_closed_form(sq: float, bound: float) -> None:
    """B1 for AUTO-S: any norm, however small, stays within the bound; two roundings of float64 beyond it at most."""
    factor = float(clip_factors(torch.tensor([sq], dtype=torch.float64), bound, "auto-s"))
    assert factor == pytest.approx(bound / (math.sqrt(sq) + 0.01), rel=1e-14)
    assert factor * math.sqrt(sq) <= bound * (1 + 1e-15)


def test_automatic_clipping_brings_long_and_short_gradients_to_one_size() -> None:
    """AUTO-S: what flat clipping leaves short is stretched; non-finite counts as zero, zero stays zero."""
    rows = torch.tensor([[300.0, 400.0], [0.3, 0.4], [0.0, 0.0], [math.nan, 1.0]], dtype=torch.float64)
    each = [flat(clipped_sum({"w": Dense(row[None])}, 2.0, "auto-s")[0]).norm().item() for row in rows]
    assert each == pytest.approx([2 * 500 / 500.01, 2 * 0.5 / 0.51, 0, 0])
    whole = flat(clipped_sum({"w": Dense(rows)}, 2.0, "auto-s")[0])
    assert float(whole.norm()) == pytest.approx(each[0] + each[1])


@pytest.mark.parametrize("clipping", ["auto-s", "flat"])
@pytest.mark.parametrize("stretched", [False, True])
def test_leaving_one_out_moves_the_sum_by_at_most_the_clip_however_it_is_clipped(
    clipping: Any, stretched: bool, tiny_text: nn.Module, text_loss: Loss, text_batch: Any
) -> None:
    """LOO: scaled before the norm, or not. Clip near the norms; scales from 1/4 to 4."""
    bound = 0.5 * natural(tiny_text, text_loss, text_batch)[1]

    def total(part: Any) -> Tensor:
        forms, _ = collect(tiny_text, text_loss, part, expected=examples_in(part))
        g = torch.Generator().manual_seed(3)
        scale = {n: 4 ** (2 * torch.rand(p.shape, generator=g) - 1) for n, p in tiny_text.named_parameters()}
        return flat(clipped_sum(scaled(forms, scale) if stretched else dict(forms), bound, clipping)[0])

    moved = [float((total(text_batch) - total(without(text_batch, i))).norm()) for i in range(5)]
    assert max(moved) <= bound * (1 + 1e-9)
    assert max(moved) > 0.9 * bound  # it was clipped
