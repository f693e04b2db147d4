"""A6: the three answers of a form come from one expression, and forms add like the gradients they stand for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpft.per_sample import Dense, Form, Outer, Rows, forms, total
from dpft.per_sample.forms import RowsAndOuter

KINDS = ("dense", "outer", "rows", "both")


def form_of(kind: str, B: int, T: int, V: int, D: int, g: torch.Generator) -> Form:
    """A random form of one kind for a [V, D] parameter."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    if kind == "dense":
        return Dense(normal(B, V, D))
    outer = Outer(normal(B, T, V), normal(B, T, D))
    rows = Rows(torch.randint(0, V, (B, T), generator=g), normal(B, T, D), V)
    return {"outer": outer, "rows": rows, "both": RowsAndOuter(rows, outer)}[kind]


sizes = {"B": st.integers(0, 4), "T": st.integers(1, 5), "V": st.integers(1, 6), "D": st.integers(1, 4)}
tiny = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@tiny
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 999), **sizes)
def test_norm_and_weighted_sum_are_those_of_the_dense_gradients(
    same_form: Callable[..., None], kind: str, B: int, T: int, V: int, D: int, seed: int
) -> None:
    form = form_of(kind, B, T, V, D, torch.Generator().manual_seed(seed))
    same_form(form, form.dense())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_is_added_where_it_belongs_whatever_the_pieces(
    kind: str, close: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onto what is there; of a table, rows that no example uses keep their very bits."""
    monkeypatch.setattr(forms, "_PIECE", 7)
    form, c = form_of(kind, 3, 2, 30, 4, torch.Generator().manual_seed(0)), torch.tensor([0.5, 1.0, 0.0])
    before = torch.randn(30, 4, dtype=torch.float64)
    total = before.clone()
    form.summed(c).add_to(total)
    close(total - before, torch.einsum("b,bvd->vd", c.double(), form.dense()))
    if isinstance(form, Rows):
        idle = [row for row in range(30) if row not in form.index]
        assert torch.equal(total[idle], before[idle])


@tiny
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), seed=st.integers(0, 999), **sizes)
def test_sum_of_forms_is_the_sum_of_gradients(
    same_form: Callable[..., None], kinds: list[str], B: int, T: int, V: int, D: int, seed: int
) -> None:
    """A1: in any number and mixture."""
    g = torch.Generator().manual_seed(seed)
    forms = [form_of(kind, B, T, V, D, g) for kind in kinds]
    same_form(total(forms), torch.stack([f.dense() for f in forms]).sum(dim=0))


@pytest.mark.parametrize(("one", "other"), list(product(KINDS, KINDS)))
def test_plus_adds(one: str, other: str, same_form: Callable[..., None]) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (form_of(kind, 3, 2, 30, 4, g) for kind in (one, other))
    same_form(a + b, a.dense() + b.dense())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_keep_turns_what_is_not_finite_into_exact_zeros(kind: str, bad: float) -> None:
    """A9: 0 * inf is nan, so a weight of zero would not do."""
    form = form_of(kind, 3, 2, 30, 4, torch.Generator().manual_seed(0))
    for part in (form.rows, form.outer) if isinstance(form, RowsAndOuter) else (form,):
        for name in ("g", "left", "right"):
            if hasattr(part, name):
                getattr(part, name)[1] = bad
    assert not torch.isfinite(form.sq_norm()[1])
    kept = form.keep(torch.tensor([True, False, True]))
    assert not kept.dense()[1].any()
    assert float(kept.sq_norm()[1]) == 0.0
    assert torch.isfinite(kept.weighted_sum(torch.ones(3))).all()
    assert torch.equal(kept.dense()[[0, 2]], form.dense()[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_form_is_kept(kind: str) -> None:
    """G2: a sum never holds more numbers than its parts do, or than the dense gradients."""
    g = torch.Generator().manual_seed(0)
    for T in (1, 4, 50):
        a, b = form_of(kind, 2, T, 20, 8, g), form_of("rows", 2, T, 20, 8, g)
        assert (a + b).numel <= min(2 * 20 * 8, a.numel + b.numel) or isinstance(a, Dense)


def test_matrix_products_in_pieces_are_whole(close: Any) -> None:
    from dpft.per_sample.precision import CHAIN, inner_products

    for K in (0, 1, CHAIN - 1, CHAIN, CHAIN + 1, 3 * CHAIN):
        x, y = torch.randn(2, 3, K, dtype=torch.float64), torch.randn(2, 4, K, dtype=torch.float64)
        close(inner_products(x, y), x @ y.mT)
