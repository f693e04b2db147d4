"""Figures: their data are the accountants' numbers, their text is the same every time."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import (
    AccountingError,
    Budget,
    EpsDelta,
    Gaussian,
    Mechanism,
    PoissonGaussian,
    ShuffledGaussian,
    Unit,
    epsilon,
    profile,
)
from dpft_accounting.plots import (
    RATES,
    allowed,
    delta_over_epsilon,
    epsilon_over_noise,
    epsilon_over_steps,
    percent,
    svg,
    trade_off,
)

SECRET, PUBLIC = Unit("example"), Unit("example", "zero_out", 10_000)
CASES = [(PoissonGaussian(0.02, 1.0, 60), SECRET), (Gaussian(3.0, 5), SECRET), (ShuffledGaussian(4, 2.0), PUBLIC)]
DELTA = 1e-5


def points(figure: Any, line: int = 0) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in figure.axes[0].lines[line].get_xydata()]


def labels(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def is_sorted(values: list[float], *, falling: bool = False) -> bool:
    ordered = list(reversed(values)) if falling else values
    return all(a <= b for a, b in pairwise(ordered))


@pytest.mark.parametrize(("mechanism", "unit"), CASES)
def test_epsilon_over_steps_is_the_accountants(mechanism: Mechanism, unit: Unit) -> None:
    found = points(epsilon_over_steps(mechanism, unit, DELTA))
    assert found[0] == (0, 0)
    assert found[-1][0] == mechanism.planned
    for steps, value in found[1:]:
        assert value == epsilon(mechanism.with_steps(int(steps)), unit, DELTA).upper
    assert is_sorted([value for _, value in found])


def test_what_was_charged_and_the_budget_are_marked() -> None:
    mechanism, unit = CASES[0]
    figure = epsilon_over_steps(mechanism, unit, DELTA, charged=37, budget=Budget(3.0, DELTA))
    at = epsilon(mechanism.with_steps(37), unit, DELTA).upper
    assert (37, at) in points(figure)
    assert points(figure, 2) == [(37, at)]
    assert {y for _, y in points(figure, 1)} == {3.0}
    assert labels(figure)[1] == "planned budget: 3.0000"
    assert "37 steps" in labels(figure)[2]
    assert figure.axes[0].get_xlabel() == "steps"
    assert epsilon_over_steps(*CASES[2], DELTA).axes[0].get_xlabel() == "epochs"


def test_epsilon_over_noise_is_the_accountants() -> None:
    found = points(figure := epsilon_over_noise(lambda s: PoissonGaussian(0.02, s, 60), SECRET, DELTA, around=0.8))
    assert found[0][0] == pytest.approx(0.4)
    assert found[-1][0] == pytest.approx(1.6)
    for sigma, value in found:
        assert value == epsilon(PoissonGaussian(0.02, sigma, 60), SECRET, DELTA).upper
    assert is_sorted([value for _, value in found], falling=True)
    assert points(figure, 1) == [found[len(found) // 2]]


@pytest.mark.parametrize(("mechanism", "unit"), CASES)
def test_delta_over_epsilon_is_the_profile(mechanism: Mechanism, unit: Unit) -> None:
    made = profile(mechanism, unit)
    found = points(figure := delta_over_epsilon(made, DELTA))
    for at, value in found:
        assert value == made.delta(at).upper
    assert is_sorted([value for _, value in found], falling=True)
    assert found[0][1] == pytest.approx(made.advantage(), rel=1e-2)
    ((at, value),) = points(figure, 1)
    assert at == made.epsilon(DELTA).upper
    assert value == pytest.approx(DELTA, rel=1e-2)


@pytest.mark.parametrize(("mechanism", "unit"), CASES)
def test_trade_off_is_the_profiles_and_below_what_the_pair_allows(mechanism: Mechanism, unit: Unit) -> None:
    made = profile(mechanism, unit)
    pair = (made.epsilon(DELTA).upper, DELTA)
    alone, own, guessing = (points(figure := trade_off(made, pair), line) for line in range(3))
    assert own == made.trade_off(RATES)
    assert alone == [(rate, allowed(rate, *pair)) for rate in RATES]
    for (_, more), (_, ours), (rate, guess) in zip(alone, own, guessing, strict=True):
        assert guess == rate <= ours <= more * 1.001
    assert is_sorted([tpr for _, tpr in own])
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlim()[0]) == ("log", "log", 1e-6)
    assert f"TPR at most {percent(made.tpr(0.01))}" in labels(figure)[3]
    assert len(trade_off(made).axes[0].lines) == 4


def test_what_a_pair_allows_is_the_profile_of_that_pair() -> None:
    """Kairouz et al. 2015, against the accountant of stated guarantees."""
    made = profile(EpsDelta(1.3, 1e-3), SECRET)
    for rate in (1e-5, 1e-3, 0.01, 0.2, 0.9):
        assert allowed(rate, 1.3, 1e-3) == pytest.approx(made.tpr(rate), rel=2e-3)
    assert allowed(1e-9, math.inf, 1e-5) == allowed(1.0, 1.0, 0.0) == 1.0
    assert allowed(0.3, 0.0, 0.0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.16973, "17 %"), (0.04801, "4.81 %"), (1e-5, "0.001 %"), (0.999652, "99.97 %")],
)
def test_percentages_are_rounded_up(value: float, text: str) -> None:
    assert percent(value) == text


def test_svg_is_the_same_every_time_and_says_nothing_of_this_machine() -> None:
    mechanism, unit = CASES[0]
    first, second = (svg(epsilon_over_steps(mechanism, unit, DELTA, charged=20)) for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "<dc:date>" not in first
    for private in (str(Path.home()), sys.prefix, "<script"):
        assert private not in first


def test_drawing_changes_no_setting_of_matplotlib_and_needs_no_pyplot() -> None:
    code = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "from dpft_accounting import Gaussian, Unit, profile\n"
        "from dpft_accounting.plots import svg, trade_off\n"
        "svg(trade_off(profile(Gaussian(1.0), Unit('example')), (1.0, 1e-5)))\n"
        "print(before == matplotlib.rcParams.copy(), 'matplotlib.pyplot' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["True", "False"]


def test_importing_loads_no_matplotlib() -> None:
    code = "import sys, dpft_accounting.plots, dpft_accounting.paper; print(*sys.modules)"
    made = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert set(made.stdout.split()).isdisjoint({"matplotlib", "numpy", "scipy", "torch"})


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(AccountingError, match="matplotlib"):
        trade_off(profile(*CASES[1]))


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(AccountingError, match="noise"):
        epsilon_over_steps(Gaussian(0.0, 3), SECRET, DELTA)
    with pytest.raises(AccountingError, match="at least one step"):
        epsilon_over_steps(Gaussian(1.0, 0), SECRET, DELTA)
    with pytest.raises(AccountingError, match="released at once"):
        epsilon_over_steps(EpsDelta(1.0, 0.0), SECRET, DELTA)
    with pytest.raises(AccountingError, match="above 0"):
        epsilon_over_noise(Gaussian, SECRET, DELTA, around=0.0)
    with pytest.raises(AccountingError, match="noise"):
        delta_over_epsilon(profile(Gaussian(0.0), SECRET), DELTA)


def test_a_pair_that_says_nothing_is_drawn_all_the_same() -> None:
    figure = trade_off(profile(*CASES[1]), (math.inf, 1e-6))
    assert {tpr for _, tpr in points(figure)} == {1.0}
    assert "infinite" in labels(figure)[0]


def test_nothing_released_is_a_guess() -> None:
    """A run that stopped before its first step has a trade-off too."""
    made = profile(PoissonGaussian(0.1, 1.0, 0), SECRET)
    own = points(trade_off(made, (0.0, 1e-6)), 1)
    assert own == [(rate, rate) for rate in RATES]
