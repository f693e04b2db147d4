"""Small gradients of neighbours as one: the same norms and sums, each where its parameter is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpft.engine import neighbours
from dpft.engine.accumulate import Accumulator
from dpft.engine.clipping import clipped_sum
from dpft.engine.neighbours import joined
from dpft.errors import PrivacyError
from dpft.per_sample import Dense, Form, Outer

KINDS = ("small", "small", "scalar", "large", "outer", "bfloat16", "missing")
B = 3


def made(kind: str, i: int) -> tuple[Form | None, torch.Size]:
    """A form of that kind, and its parameter's shape."""
    g = torch.Generator().manual_seed(i)
    shapes = {"scalar": (), "large": (40, 60), "outer": (4, 6)}
    shape = torch.Size(shapes.get(kind, (2, i + 1)))
    if kind == "missing":
        return None, shape
    if kind == "outer":
        return Outer(torch.randn(B, 5, 4, generator=g), torch.randn(B, 5, 6, generator=g)), shape
    dense = torch.randn(B, *shape, generator=g, dtype=torch.float64)
    return Dense(dense.bfloat16() if kind == "bfloat16" else dense.float()), shape


def in_place(forms: dict[tuple[str, ...], Form], shapes: dict[str, torch.Size], bound: float) -> tuple[Tensor, Tensor]:
    """The clipped sum where the accumulator puts it, and the squared norms."""
    params = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    sums, sq = clipped_sum(forms, bound)
    into = Accumulator(nn.Module(), lambda m, b: b, params, bound, 1)
    total = torch.zeros(sum(p.numel() for p in params.values()), dtype=torch.float64)
    for names, part in sums.items():
        part.add_to(into.place(total, names))
    return total, sq


@settings(deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=9), share=st.sampled_from([0.1, 10.0]))
def test_joined_or_one_by_one_is_the_same_sum(kinds: Sequence[str], share: float) -> None:
    """With parameters between them that are large, factored or without a gradient."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as m:
        m.setattr(neighbours, "_SMALL", B * 40)
        m.setattr(neighbours, "_ENOUGH", B * 50)
        found = {str(i): made(kind, i) for i, kind in enumerate(kinds)}
        shapes = {name: shape for name, (_, shape) in found.items()}
        forms = {name: form for name, (form, _) in reversed(found.items()) if form is not None}
        if not forms:
            return
        alone: dict[tuple[str, ...], Form] = {(name,): form for name, form in forms.items()}
        one, sq_one = in_place(alone, shapes, share)
        together = joined(forms, shapes)
        assert not forms
        names = [name for run in together for name in run]
        assert names == [name for name in shapes if found[name][0] is not None]
        both, sq_both = in_place(together, shapes, share)
    torch.testing.assert_close(sq_both, sq_one, rtol=1e-6, atol=0)
    torch.testing.assert_close(both, one, rtol=1e-5, atol=1e-6)


def test_hundreds_of_small_tensors_are_a_few_forms() -> None:
    """And a matrix among them, or a neighbour that got no gradient, divides them."""
    order = [str(i) for i in range(300)]
    forms: dict[str, Form] = {name: Dense(torch.ones(B, 7)) for name in order}
    assert [len(run) for run in joined(dict(forms), order)] == [300]
    forms["100"] = Dense(torch.ones(B, 2**15))
    del forms["200"]
    assert [len(run) for run in joined(forms, order)] == [100, 1, 99, 99]


def test_an_example_that_is_not_finite_counts_as_zero_in_all_of_them() -> None:
    g = torch.ones(2, 3)
    g[1, 2] = torch.inf
    forms: dict[str, Form] = {"a": Dense(torch.ones(2, 2)), "b": Dense(g)}
    sums, _ = clipped_sum(joined(forms, ["a", "b"]), 100.0)
    assert [part.dense().tolist() for part in sums.values()] == [[[1.0] * 5]]


def test_a_gradient_of_no_known_parameter_raises() -> None:
    """It would be in no norm and in no sum, and nobody would know."""
    with pytest.raises(PrivacyError, match="found some of b"):
        joined({"a": Dense(torch.ones(B, 2)), "b": Dense(torch.ones(B, 2))}, ["a"])
