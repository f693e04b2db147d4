"""The best of K runs: the planner keeps the budget, K follows its distribution, and losers leave nothing."""

from __future__ import annotations

import gc
import math
import random
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import (
    AccountingError,
    Budget,
    BudgetExceeded,
    Gaussian,
    Ledger,
    Mechanism,
    NoisyCount,
    PoissonGaussian,
    Select,
    TuningPlan,
    Unit,
    Unsupported,
    calibrate,
    epsilon,
    plan_tuning,
    run_tuning,
)
from dpft_accounting.tuning import draw_trials
from scipy import stats

UNIT, BUDGET = Unit("example"), Budget(4.0, 1e-6)
DISTRIBUTIONS = [("geometric", None), ("logarithmic", None), ("negative_binomial", 0.5), ("poisson", None)]


class Repeatable(random.SystemRandom):
    """Seeded, for tests alone; it passes for the system's generator only because it says that it is one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._inner = random.Random(seed)

    def random(self) -> float:
        return self._inner.random()

    def getrandbits(self, k: int) -> int:
        return self._inner.getrandbits(k)


def base(sigma: float) -> Mechanism:
    return PoissonGaussian(0.01, sigma, 500)


@pytest.fixture
def plan() -> TuningPlan:
    return plan_tuning(base, BUDGET, 5, unit=UNIT)


def ledger_at(path: Path) -> Ledger:
    return Ledger.open(path / "ledger.jsonl", "d", UNIT, BUDGET)


@pytest.mark.parametrize(("dist", "shape"), DISTRIBUTIONS)
def test_the_plan_keeps_the_budget_and_beats_composition(dist: Any, shape: float | None) -> None:
    """E5: the search is inside ε; composing all runs would need more noise."""
    made = plan_tuning(base, BUDGET, 10, dist, unit=UNIT, shape=shape)
    assert made.select == Select(base(made.sigma), 10, dist, shape)
    assert made.bound == epsilon(made.select, UNIT, BUDGET.delta)
    assert BUDGET.epsilon * (1 - 2e-3) <= made.bound.upper <= BUDGET.epsilon
    single = calibrate(base, UNIT, BUDGET).value
    assert made.sigma > single
    if dist != "poisson":
        assert made.sigma < calibrate(lambda s: base(s).with_steps(5000), UNIT, BUDGET).value


def test_a_noisy_score_is_paid_for() -> None:
    """E5: in parallel where the counted records are others, in sequence where they are not."""
    public = plan_tuning(base, BUDGET, 5, unit=UNIT).sigma
    apart = plan_tuning(base, BUDGET, 5, score=NoisyCount(20.0, disjoint=True), unit=UNIT).sigma
    same = plan_tuning(base, BUDGET, 5, score=NoisyCount(20.0), unit=UNIT).sigma
    assert public == apart < same
    loud = plan_tuning(base, BUDGET, 5, score=NoisyCount(2.0), unit=UNIT).sigma
    assert loud > same
    with pytest.raises(Unsupported):
        plan_tuning(base, BUDGET, 5, score=NoisyCount(0.05), unit=UNIT)
    with pytest.raises(AccountingError, match="score"):
        plan_tuning(base, BUDGET, 5, score="private", unit=UNIT)  # type: ignore[arg-type]
    with pytest.raises(AccountingError, match="sigma"):
        NoisyCount(0.0)


@pytest.mark.parametrize(("dist", "shape"), [*DISTRIBUTIONS, ("negative_binomial", -0.5)])
@pytest.mark.parametrize("mean", [1.5, 6.0])
def test_k_follows_its_distribution(dist: Any, shape: float | None, mean: float) -> None:
    """Against scipy's distributions; a p-value of 1e-6 is a fault, not chance (and the seed is fixed)."""
    select = Select(Gaussian(1.0), mean, dist, shape)
    generator = Repeatable(3)
    drawn = Counter(draw_trials(select, generator) for _ in range(20_000))
    ks = range(60)
    if dist == "poisson":
        pmf = [float(stats.poisson.pmf(k, mean)) for k in ks]
    else:
        eta = {"geometric": 1.0, "logarithmic": 0.0}.get(dist, shape)
        assert eta is not None
        g = _gamma(mean, eta)
        raw = [0.0, *(_raw(k, g, eta) for k in ks[1:])]
        pmf = [value / math.fsum(_raw(k, g, eta) for k in range(1, 5000)) for value in raw]
    assert sum(k * n for k, n in drawn.items()) / 20_000 == pytest.approx(mean, rel=0.08)
    keep = [k for k in ks if 20_000 * pmf[k] >= 10]
    observed = [drawn[k] for k in keep]
    expected = [20_000 * pmf[k] for k in keep]
    rest = 20_000 - sum(observed), 20_000 - math.fsum(expected)
    if rest[1] > 5:
        observed.append(rest[0])
        expected.append(rest[1])
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert stats.chi2.sf(statistic, len(observed) - 1) > 1e-6


def _raw(k: int, g: float, eta: float) -> float:
    """Proportional to Pr[K = k]; independent of the recursion in the package."""
    rising = math.lgamma(k + eta) - math.lgamma(eta) if eta > 0 else math.lgamma(k + eta)
    return math.exp(k * math.log1p(-g) + rising - math.lgamma(k + 1))


def _gamma(mean: float, eta: float) -> float:
    """γ by bisection on directly summed means."""
    low, high = 1e-6, 1 - 1e-9
    for _ in range(60):
        middle = math.sqrt(low * high)
        weights = [_raw(k, middle, eta) for k in range(1, 4000)]
        found = math.fsum(k * w for k, w in enumerate(weights, start=1)) / math.fsum(weights)
        low, high = (middle, high) if found > mean else (low, middle)
    return high


def test_the_best_leaves_alone(plan: TuningPlan, tmp_path: Path) -> None:
    """E5, F2: the winner is the best of those that ran; no losing output is held by anybody afterwards."""

    class Output:
        pass

    seen: list[tuple[float, weakref.ref[Output]]] = []

    def trial(params: Any, sigma: float) -> tuple[float, Output]:
        assert sigma == plan.sigma
        output = Output()
        seen.append((params["lr"], weakref.ref(output)))
        return params["lr"], output

    with ledger_at(tmp_path) as ledger:
        won = run_tuning(plan, trial, {"lr": [i / 100 for i in range(100)]}, ledger, Repeatable(5))
        assert ledger.spent(BUDGET.delta).upper == plan.bound.upper
        record = ledger.runs()["tuning"]
    assert won is not None
    assert len(seen) > 1
    assert won.params["lr"] == won.score == max(lr for lr, _ in seen)
    gc.collect()
    assert sum(ref() is not None for _, ref in seen) == 1
    assert (record.mech, record.reserved, record.committed) == (plan.select, 1, 1)


def test_candidates_are_drawn_afresh_and_ties_are_broken_by_chance(plan: TuningPlan, tmp_path: Path) -> None:
    """A condition of the bound: with equal scores every trial must be able to win."""
    winners = []
    for number in range(30):
        order: list[int] = []

        def trial(params: Any, sigma: float, order: list[int] = order) -> tuple[float, int]:
            order.append(params)
            return 1.0, len(order)

        with Ledger.open(tmp_path / str(number), "d", UNIT, BUDGET) as ledger:
            won = run_tuning(plan, trial, lambda rng: rng.randrange(1000), ledger, Repeatable(number))
        assert won is not None
        winners.append((won.output, len(order)))
    several = [(at, of) for at, of in winners if of >= 3]
    assert any(at == 1 for at, _ in several)
    assert any(1 < at < of for at, of in several)
    assert any(at == of for at, of in several)


def test_a_noisy_count_is_noised(tmp_path: Path) -> None:
    made = plan_tuning(base, BUDGET, 5, score=NoisyCount(10.0), unit=UNIT)
    with ledger_at(tmp_path) as ledger:
        won = run_tuning(made, lambda params, sigma: (700.0, None), lambda rng: None, ledger, Repeatable(1))
    assert won is not None
    assert won.score != 700
    assert abs(won.score - 700) < 100
    assert (won.score * 1024).is_integer()  # on the grid


def test_everything_is_charged_before_the_first_trial(plan: TuningPlan, tmp_path: Path) -> None:
    """E2: also when the first trial fails."""

    def fails(params: Any, sigma: float) -> tuple[float, None]:
        assert Ledger.read(tmp_path / "ledger.jsonl").runs()["tuning"].reserved == 1
        raise RuntimeError("out of memory")

    with ledger_at(tmp_path) as ledger:
        with pytest.raises(RuntimeError, match="out of memory"):
            run_tuning(plan, fails, {"lr": [1]}, ledger)
        assert ledger.spent(BUDGET.delta).upper == plan.bound.upper
        with pytest.raises(BudgetExceeded):  # there is no second search for the same money
            run_tuning(plan, fails, {"lr": [1]}, ledger, name="again")


def test_poisson_may_run_nothing(tmp_path: Path) -> None:
    made = plan_tuning(base, BUDGET, 0.01, "poisson", unit=UNIT)
    with ledger_at(tmp_path) as ledger:
        assert run_tuning(made, lambda params, sigma: (1.0, 1), {"lr": [1]}, ledger, Repeatable(0)) is None
        assert ledger.runs()["tuning"].reserved == 1  # charged all the same: that nothing ran is an output


def test_a_generator_that_others_could_know_is_refused(plan: TuningPlan, tmp_path: Path) -> None:
    """C5: K and the noise are secret."""
    with ledger_at(tmp_path) as ledger:
        with pytest.raises(AccountingError, match="operating system"):
            run_tuning(plan, lambda params, sigma: (1.0, 1), {"lr": [1]}, ledger, random.Random(0))
        assert not ledger.runs()


def test_other_books_and_scores_are_refused(plan: TuningPlan, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "x", "d", Unit("user"), BUDGET) as ledger, pytest.raises(AccountingError, match="user"):
        run_tuning(plan, lambda params, sigma: (1.0, 1), {"lr": [1]}, ledger)
    with ledger_at(tmp_path) as ledger, pytest.raises(AccountingError, match="score"):
        run_tuning(plan, lambda params, sigma: (math.nan, 1), {"lr": [1]}, ledger)


@pytest.mark.parametrize(
    ("mean", "dist", "shape"),
    [
        (0.5, "geometric", None),
        (0.0, "poisson", None),
        (math.inf, "geometric", None),
        (3, "uniform", None),
        (3, "negative_binomial", None),
        (3, "negative_binomial", -1.0),
        (3, "geometric", 2.0),
        (True, "geometric", None),
    ],
)
def test_a_meaningless_distribution_is_refused(mean: float, dist: Any, shape: float | None) -> None:
    """F4."""
    with pytest.raises(AccountingError):
        Select(Gaussian(1.0), mean, dist, shape)
