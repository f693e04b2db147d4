"""Units, budgets, mechanisms and bounds: what they refuse, and that their JSON form loses nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from dpft_accounting import (
    AccountingError,
    Bound,
    Budget,
    Gaussian,
    Mechanism,
    PoissonGaussian,
    Unit,
    check_delta,
    mechanism_from_dict,
)
from dpft_accounting.bound import round_up
from hypothesis import given
from hypothesis import strategies as st

steps = st.integers(0, 10**7)
sigmas = st.floats(0, 1e6)
mechanisms: st.SearchStrategy[Mechanism] = st.builds(Gaussian, sigmas, steps) | st.builds(
    PoissonGaussian, st.floats(0, 1, exclude_min=True), sigmas, steps
)

NOT_A_SIGMA = [math.nan, math.inf, -1.0, -1e-300, "1", None, True, [1.0]]
NOT_STEPS = [1.5, 2.0, -1, True, None, "3", math.nan]


@given(mechanisms)
def test_a_mechanism_survives_json(mechanism: Mechanism) -> None:
    """E2: the ledger's copy of a mechanism is the mechanism."""
    assert mechanism_from_dict(json.loads(json.dumps(mechanism.to_dict()))) == mechanism


@given(mechanisms, steps)
def test_with_steps_changes_only_the_steps(mechanism: Mechanism, k: int) -> None:
    other = mechanism.with_steps(k)
    assert other.steps == k
    assert other.with_steps(mechanism.steps) == mechanism


@pytest.mark.parametrize("sigma", NOT_A_SIGMA)
def test_a_meaningless_sigma_is_refused(sigma: Any) -> None:
    """F4."""
    with pytest.raises(AccountingError, match="sigma"):
        Gaussian(sigma, 1)
    with pytest.raises(AccountingError, match="sigma"):
        PoissonGaussian(0.1, sigma, 1)


@pytest.mark.parametrize("number", NOT_STEPS)
def test_steps_that_are_not_a_count_are_refused(number: Any) -> None:
    """F4."""
    with pytest.raises(AccountingError, match="steps"):
        Gaussian(1.0, number)
    with pytest.raises(AccountingError, match="steps"):
        PoissonGaussian(0.1, 1.0, number)


@pytest.mark.parametrize("q", [0, -0.1, 1.0000001, math.nan, math.inf, "0.1", True, None])
def test_a_sampling_rate_outside_zero_to_one_is_refused(q: Any) -> None:
    """F4."""
    with pytest.raises(AccountingError, match="q"):
        PoissonGaussian(q, 1.0, 1)


def test_numbers_from_numpy_become_plain() -> None:
    mechanism = PoissonGaussian(np.float32(0.5), np.float64(1.5), np.int64(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(mechanism.to_dict()))["steps"] == 3
    assert mechanism == PoissonGaussian(0.5, 1.5, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "poison_gaussian"},
        {"kind": None},
        {"kind": ["gaussian"]},
        {"v": 2},
        {"v": True},
        {"v": 1.0},
        {"sigma_": 1.0},
        {"q": 2},
        {"steps": 1.5},
        {"sigma": "1"},
    ],
)
def test_an_unknown_mechanism_is_refused(change: dict[str, Any]) -> None:
    """F4: misspelt keys, other versions and kinds never pass in silence."""
    with pytest.raises(AccountingError, match="Expected"):
        mechanism_from_dict({**PoissonGaussian(0.1, 1.0, 3).to_dict(), **change})


@pytest.mark.parametrize("missing", ["kind", "v", "q", "sigma", "steps"])
def test_a_mechanism_with_a_missing_key_is_refused(missing: str) -> None:
    """F4."""
    fields = PoissonGaussian(0.1, 1.0, 3).to_dict()
    del fields[missing]
    with pytest.raises(AccountingError, match="Expected"):
        mechanism_from_dict(fields)


@pytest.mark.parametrize("value", [None, [], "gaussian", 3])
def test_a_mechanism_that_is_no_mapping_is_refused(value: Any) -> None:
    with pytest.raises(AccountingError, match="Expected a mechanism"):
        mechanism_from_dict(value)


@pytest.mark.parametrize(
    "unit", [Unit("example"), Unit("user", "zero_out", 10), Unit("chunk of 128 tokens", "replace", 7)]
)
def test_a_unit_survives_json(unit: Unit) -> None:
    assert Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) == unit


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "add_remove", None),
        ("two\nlines", "add_remove", None),
        (3, "add_remove", None),
        ("x" * 201, "add_remove", None),
        ("example", "add-remove", None),
        ("example", "add_remove", 100),
        ("example", "zero_out", None),
        ("example", "replace", 0),
        ("example", "replace", 10.0),
    ],
)
def test_a_contradictory_unit_is_refused(arguments: tuple[Any, ...]) -> None:
    """E6: unit and relation are explicit, and n is published only where it is public."""
    with pytest.raises(AccountingError, match="Expected"):
        Unit(*arguments)


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2, math.nan, math.inf, "1e-5", None, True])
def test_a_delta_outside_zero_to_one_is_refused(delta: Any) -> None:
    """E6."""
    with pytest.raises(AccountingError, match="delta"):
        check_delta(delta, Unit("example"))


def test_a_delta_of_one_over_n_is_refused() -> None:
    """E6: δ >= 1/n allows publishing one unit at random; checked wherever n is public."""
    unit = Unit("example", "zero_out", 1000)
    assert check_delta(0.999e-3, unit) == 0.999e-3
    with pytest.raises(AccountingError, match="below 1/n"):
        check_delta(1e-3, unit)
    assert check_delta(1e-3, Unit("example")) == 1e-3


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0, 0.1), (-1, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1, 0), (1, 1), (1, math.nan)],
)
def test_a_meaningless_budget_is_refused(epsilon: float, delta: float) -> None:
    """F4."""
    with pytest.raises(AccountingError, match="Expected"):
        Budget(epsilon, delta)


@given(st.floats(0, 1e300), st.floats(0, 1e300), st.none() | st.floats(0, 1))
def test_a_bound_survives_json_and_prints_no_less_than_its_upper_end(a: float, b: float, grid: float | None) -> None:
    """E4: what is printed is never below what was computed."""
    bound = Bound(min(a, b), max(a, b), "pld", {"numpy": "2"}, grid, ("flag",))
    assert Bound.from_dict(json.loads(json.dumps(bound.to_dict(), allow_nan=False))) == bound
    assert float(str(bound)) >= bound.upper


def test_an_infinite_bound_survives_json() -> None:
    bound = Bound(0.0, math.inf, "rdp", {})
    assert Bound.from_dict(json.loads(json.dumps(bound.to_dict(), allow_nan=False))) == bound
    assert str(bound) == "inf"


@pytest.mark.parametrize(("lower", "upper"), [(2, 1), (-1, 1), (math.nan, 1), (0, math.nan)])
def test_an_impossible_bound_is_refused(lower: float, upper: float) -> None:
    """E4: ε >= 0."""
    with pytest.raises(AccountingError, match="Expected"):
        Bound(lower, upper, "pld", {})


@pytest.mark.parametrize("change", [{"method": 3}, {"versions": []}, {"flags": "x"}, {"lower": "nan"}, {"more": 1}])
def test_a_bound_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AccountingError, match="Expected"):
        Bound.from_dict({**Bound(0.0, 1.0, "pld", {}).to_dict(), **change})


@given(st.floats(1e-300, 1e300), st.integers(1, 12))
def test_rounding_up_never_lowers_and_moves_less_than_one_digit(value: float, digits: int) -> None:
    rounded = round_up(value, digits)
    assert value <= rounded <= value * (1 + 1.1 * 10 ** (1 - digits))
    assert round_up(rounded, digits) <= rounded * (1 + 1e-15) or digits > 11
