"""The best of K runs against its exact distribution, on two thousand small discrete mechanisms.

Base outputs are ranked 0 < 1 < 2 …; with F their distribution function and f the generating function of K, the best
of K is at most y with probability f(F(y)) (Papernot & Steinke 2022, arXiv 2110.03620). No density, no ratio, no bound.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from dpft_accounting import EpsDelta, Gaussian, Select, Unit, Unsupported, delta
from dpft_accounting.losses import Loss, Pair
from dpft_accounting.select import best_profile, gamma, mean_of
from numpy.typing import NDArray

Array = NDArray[np.float64]

DX = 5e-3


class Trials(NamedTuple):
    """A distribution of K by its own parameter: γ, or the mean of Poisson."""

    dist: Any
    shape: float | None
    parameter: float

    def generating(self, x: Array) -> Array:
        """f(x) = E x^K in closed form."""
        if self.shape is None:
            return np.exp(self.parameter * (x - 1))
        g, eta = self.parameter, self.shape
        if eta == 0:
            return np.log1p(-(1 - g) * x) / math.log(g)
        return np.expm1(-eta * np.log1p(-(1 - g) * x)) / math.expm1(-eta * math.log(g))

    def pmf(self, count: int) -> Array:
        """Pr[K = 0], …, Pr[K = count − 1], by the definition, term after term."""
        found = np.zeros(count)
        if self.shape is None:
            found[0] = math.exp(-self.parameter)
            for k in range(1, count):
                found[k] = found[k - 1] * self.parameter / k
            return found
        g, eta = self.parameter, self.shape
        found[1] = (1 - g) / math.log(1 / g) if eta == 0 else (1 - g) * eta / (g**-eta - 1)
        for k in range(2, count):
            found[k] = found[k - 1] * (1 - g) * (k - 1 + eta) / k
        return found

    def mean(self) -> float:
        if self.shape is None:
            return self.parameter
        pmf = self.pmf(round(60 / self.parameter) + 60)
        return float((np.arange(len(pmf)) * pmf).sum())

    def select(self) -> Select:
        named = self.shape if self.dist == "negative_binomial" else None
        return Select(Gaussian(1.0), self.mean(), self.dist, named)

    def best(self, base: Array) -> Array:
        """Probabilities of the released output; the first is that of no run at all."""
        cdf = np.concatenate([[0.0], np.cumsum(base)])
        cdf[-1] = 1.0
        at = self.generating(cdf)
        return np.concatenate([at[:1], np.maximum(np.diff(at), 0.0)])


def draw_trials(rng: np.random.Generator) -> Trials:
    kind = rng.integers(4)
    if kind == 3:
        return Trials("poisson", None, float(10 ** rng.uniform(-0.5, 1.5)))
    g = float(10 ** rng.uniform(-2.2, -0.02))
    shapes = (("geometric", 1.0), ("logarithmic", 0.0), ("negative_binomial", float(rng.uniform(-0.9, 3))))
    return Trials(*shapes[kind], g)


def draw_pair(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two distributions on a few outcomes: unrelated, close, leaking, or a coin that tells little but once."""
    size = int(rng.integers(2, 6))
    kind = rng.integers(4)
    p = rng.dirichlet(np.full(size, rng.choice([0.3, 1.0, 5.0])))
    if kind == 0:
        q = rng.dirichlet(np.full(size, 1.0))
    elif kind == 1:
        q = p * np.exp(rng.uniform(-1, 1, size) * rng.choice([0.01, 0.2, 1.0]))
    elif kind == 2:
        q = p.copy()
        q[-1] *= rng.choice([0.0, 0.5, 0.9, 1.5])
    else:
        tail = 10 ** rng.uniform(-4, -0.5)
        p, q = np.array([1 - tail, tail]), np.array([1 - tail * math.exp(-rng.uniform(0.01, 3)), 0.0])
        q[1] = 1 - q[0]
    p, q = np.maximum(p, 1e-9), np.where(q > 0, np.maximum(q, 1e-9), 0.0)
    return p / p.sum(), q / q.sum()


def as_loss(p: Array, q: Array) -> Loss:
    """ln(p/q) under p, rounded up to the grid: what an accountant would hold of this pair, no less."""
    there = (p > 0) & (q > 0)
    cells = np.ceil(np.log(p[there] / q[there]) / DX - 1e-9).astype(int)
    low = int(cells.min())
    return Loss(DX, low, np.bincount(cells - low, weights=p[there]), float(p[q == 0].sum()))


def hockey_stick(p: Array, q: Array, eps: Array) -> Array:
    return np.maximum(p - np.exp(eps)[:, None] * q, 0.0).sum(axis=1)


def test_the_profile_bound_is_never_below_the_exact_selection() -> None:
    """E5: all distributions of K, both directions, any ε; and sometimes equal to the truth, so it is no empty bound."""
    rng = np.random.default_rng(8)
    tightest = dict.fromkeys(("geometric", "logarithmic", "negative_binomial", "poisson"), 0.0)
    for _ in range(2000):
        trials = draw_trials(rng)
        p, q = draw_pair(rng)
        pair = Pair(as_loss(p, q), as_loss(q, p))
        profile, reach = best_profile(trials.select(), [pair], DX)
        eps = np.concatenate([np.linspace(0, reach + 0.5, 40), rng.uniform(0, reach, 20)])
        bound = profile(eps)
        best_p, best_q = trials.best(p), trials.best(q)
        exact = np.maximum(hockey_stick(best_p, best_q, eps), hockey_stick(best_q, best_p, eps))
        assert np.all(bound >= exact - 1e-12), (trials, p, q)
        telling = (exact > 1e-6) & (bound < 0.99)
        if telling.any():
            tightest[trials.dist] = max(tightest[trials.dist], float((exact[telling] / bound[telling]).max()))
    assert min(tightest.values()) > 0.95, tightest


@pytest.mark.parametrize("eta", [-0.9, -0.5, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("g", [0.9, 0.3, 0.02])
def test_the_mean_is_the_sum_and_gamma_undoes_it(eta: float, g: float) -> None:
    """Definition and closed forms, term by term; also that the generating function is one."""
    trials = Trials("negative_binomial", eta, g)
    pmf = trials.pmf(round(60 / g) + 60)
    assert pmf.sum() == pytest.approx(1, abs=1e-12)
    assert mean_of(g, eta) == pytest.approx(trials.mean(), rel=1e-10)
    assert gamma(trials.select()) == pytest.approx(g, rel=1e-8)
    for x in (0.2, 0.9):
        assert float(trials.generating(np.array(x))) == pytest.approx((pmf * x ** np.arange(len(pmf))).sum(), rel=1e-10)


@pytest.mark.parametrize("eta", [-0.9, 0.0, 1.0, 100.0])
@pytest.mark.parametrize("mean", [1.0, 1.0 + 1e-7, 1.001, 7.0, 1000.0])
def test_gamma_gives_the_mean_that_was_asked_for(eta: float, mean: float) -> None:
    """E5: from certainty of one run to a thousand on average."""
    try:
        g = gamma(Select(Gaussian(1.0), mean, "negative_binomial", eta))
    except Unsupported:
        assert eta < 0  # heavy tails: a large mean needs a γ that no float64 holds
        return
    assert mean_of(g, eta) == pytest.approx(mean, rel=1e-9)
    assert 0 < g <= 1


@pytest.mark.parametrize("eps0", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(
    "trials",
    [
        Trials("geometric", 1.0, 0.1),
        Trials("logarithmic", 0.0, 0.05),
        Trials("poisson", None, 3.0),
        Trials("negative_binomial", -0.5, 0.2),
        Trials("geometric", 1.0, 0.999),
    ],
)
def test_selection_over_a_stated_guarantee_is_above_the_worst_mechanism_that_keeps_it(
    eps0: float, trials: Trials
) -> None:
    """E5: all the way from ``Select`` to δ: randomised response with leak 1e-3, its outputs ranked in any order."""
    leak, heads = 1e-3, math.exp(eps0) / (1 + math.exp(eps0))
    p = np.array([0.0, (1 - leak) * heads, (1 - leak) * (1 - heads), leak])
    q = np.array([leak, (1 - leak) * (1 - heads), (1 - leak) * heads, 0.0])
    named = trials.shape if trials.dist == "negative_binomial" else None
    chosen = Select(EpsDelta(eps0, leak), trials.mean(), trials.dist, named)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [1, 2, 3, 0], [2, 0, 3, 1]):
        a, b = trials.best(p[order]), trials.best(q[order])
        for eps in (0.0, eps0 / 2, eps0, 2 * eps0, 3 * eps0, 5 * eps0):
            exact = max(hockey_stick(x, y, np.array([eps]))[0] for x, y in ((a, b), (b, a)))
            assert delta(chosen, Unit("example"), eps, method="pld").upper >= exact - 1e-12
