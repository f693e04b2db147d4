"""Audits with gradient canaries: bounds that stay below the truth as often as they promise, and find faults."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from dpft_accounting import AccountingError, Gaussian, PoissonGaussian, Unit, Unsupported, audit, epsilon
from dpft_accounting.audit import gradient_canary
from dpft_accounting.bound import Bound
from dpft_accounting.mechanisms import Mechanism, ShuffledGaussian
from scipy.stats import binom, binomtest, norm

Array = np.ndarray[Any, np.dtype[Any]]
EXAMPLE = Unit("example")
DELTA = 1e-5
LEVEL = 0.05
REPEATS = 200
# A sound bound is too high in at most Binomial(200, 0.05) repetitions, hence in more than this with probability
# below 1e-4 (it is 22, a rate of 11 %); one that ignores chance is too high in about half of them.
MOST_FAILURES = int(binom.isf(1e-4, REPEATS, LEVEL))


def gaussian_scores(mu: float, n: int, seed: int, noise: float = 1.0) -> tuple[Array, Array]:
    """n scores with and n without the canary; ``noise`` is what was added, relative to what was claimed."""
    rng = np.random.default_rng(seed)
    return rng.normal(mu, noise, n), rng.normal(0, noise, n)


def poisson_scores(q: float, sigma: float, n: int, seed: int, noise: float = 1.0) -> tuple[Array, Array]:
    """One step a score: in the data the canary is sampled with rate q."""
    rng = np.random.default_rng(seed)
    return rng.normal((rng.random(n) < q) / sigma, noise), rng.normal(0, noise, n)


@pytest.mark.parametrize(
    # Tolerance: the spread of a single audit, 0.3 to 0.45 at n = 500 and 0.14 to 0.17 at 5000.
    ("mu", "n", "known", "tolerance"),
    [(1, 500, 3.0, 0.4), (1, 5000, 4.0, 0.15), (2, 500, 8.9, 0.45), (2, 5000, 9.4, 0.2)],
)
def test_gradient_canaries_reach_the_known_bounds(mu: float, n: int, known: float, tolerance: float) -> None:
    found = [gradient_canary(*gaussian_scores(mu, n, s), Gaussian(1 / mu), DELTA, mu / 2) for s in range(20)]
    assert np.mean([a.epsilon_lower for a in found]) == pytest.approx(known, abs=tolerance)
    for one in found:
        assert one.plain_lower is not None
        assert one.plain_lower < one.epsilon_lower < epsilon(Gaussian(1 / mu), EXAMPLE, DELTA).upper


# Without assuming a Gaussian, ε comes from the ratio of two small rates: far out, not at mu/2.
@pytest.mark.parametrize(("mu", "threshold", "known"), [(1, 0.5, 0.75), (1, 1.5, 1.4), (2, 1.0, 1.6), (2, 3.3, 4.1)])
def test_plain_bounds_need_a_threshold_far_out(mu: float, threshold: float, known: float) -> None:
    found = [gradient_canary(*gaussian_scores(mu, 5000, s), Gaussian(1 / mu), DELTA, threshold) for s in range(20)]
    assert np.mean([a.plain_lower for a in found if a.plain_lower is not None]) == pytest.approx(known, abs=0.15)


@pytest.mark.parametrize("cut", [0.3, 1.2])  # one where misses are rare, one where false alarms are
def test_a_gradient_canary_is_its_formulas(cut: float) -> None:
    """Limits against another implementation; then Nasr et al., both directions of the plain bound."""
    inside, outside = gaussian_scores(1.5, 300, 0)
    found = gradient_canary(inside, outside, Gaussian(2.0, steps=9), 1e-3, cut)
    fpr = binomtest(int((outside >= cut).sum()), 300).proportion_ci(0.95, "exact").high
    fnr = binomtest(int((inside <= cut).sum()), 300).proportion_ci(0.95, "exact").high
    mu = norm.ppf(1 - fpr) - norm.ppf(fnr)
    plain = max(math.log((1 - fnr - 1e-3) / fpr), math.log((1 - fpr - 1e-3) / fnr))
    assert (found.fpr_upper, found.fnr_upper) == pytest.approx((fpr, fnr), rel=1e-9)
    assert (found.mu_lower, found.plain_lower) == pytest.approx((mu, plain), rel=1e-9)
    assert found.epsilon_lower == pytest.approx(epsilon(Gaussian(1 / mu), EXAMPLE, 1e-3).upper, rel=1e-6)
    assert (found.method, found.canaries, found.significance) == ("gradient_canary", 600, 0.05)


def test_a_score_at_the_threshold_is_an_error_on_either_side() -> None:
    at, beside = [1.0] * 50, [0.0] * 50
    found = gradient_canary(at, at, Gaussian(1.0), DELTA, 1.0)
    assert (found.fpr_upper, found.fnr_upper, found.epsilon_lower, found.plain_lower) == (1.0, 1.0, 0.0, 0.0)
    assert gradient_canary(at, beside, Gaussian(1.0), DELTA, 0.5).epsilon_lower > 0


@pytest.mark.parametrize(("mu", "n"), [(0.5, 40), (1.0, 200), (3.0, 200)])
def test_gradient_canaries_are_too_high_no_more_often_than_they_say(mu: float, n: int) -> None:
    truth = epsilon(Gaussian(1 / mu), EXAMPLE, DELTA).upper
    found = [gradient_canary(*gaussian_scores(mu, n, s), Gaussian(1 / mu), DELTA, mu / 2) for s in range(REPEATS)]
    assert sum(a.contradicts(truth) for a in found) <= MOST_FAILURES


def test_full_poisson_batches_are_audited_as_gaussian() -> None:
    scores = gaussian_scores(1.0, 500, 0)
    full = gradient_canary(*scores, PoissonGaussian(1.0, 2.0, 4), DELTA, 0.5)
    assert full == gradient_canary(*scores, Gaussian(2.0, 4), DELTA, 0.5)
    assert full.mu_lower is not None
    assert full.sigma_upper is None


def test_half_the_noise_is_found_in_full_batches() -> None:
    """mu = 1 is claimed (ε 4.38); the noise is half of that, and really mu = 2 (ε 10.0)."""
    mechanism = Gaussian(2.0, steps=4)
    claim = epsilon(mechanism, EXAMPLE, DELTA).upper
    for seed in range(10):
        found = gradient_canary(*gaussian_scores(1.0, 500, seed, noise=0.5), mechanism, DELTA, 0.5)
        assert found.contradicts(claim)
        assert not gradient_canary(*gaussian_scores(1.0, 500, seed), mechanism, DELTA, 0.5).contradicts(claim)


@pytest.mark.parametrize(("q", "sigma"), [(0.5, 1.0), (0.2, 0.6)])
def test_one_poisson_step_rarely_underestimates_the_noise(q: float, sigma: float) -> None:
    """200 repetitions of no steps at all: the noise is bounded, and no accountant is run."""
    mechanism = PoissonGaussian(q, sigma, 0)
    found = [gradient_canary(*poisson_scores(q, sigma, 2000, s), mechanism, DELTA, 0.5 / sigma) for s in range(REPEATS)]
    noises = [a.sigma_upper for a in found if a.sigma_upper is not None]
    assert len(noises) == REPEATS
    assert sum(noise < sigma for noise in noises) <= MOST_FAILURES
    assert np.median(noises) < 2.5 * sigma  # and it says something
    assert {a.epsilon_lower for a in found} == {0.0}


def test_half_the_noise_is_found_in_poisson_steps() -> None:
    q, mechanism = 0.5, PoissonGaussian(0.5, 1.0, 20)
    claim = epsilon(mechanism, EXAMPLE, DELTA).upper
    right = gradient_canary(*poisson_scores(q, 1.0, 4000, 3), mechanism, DELTA, 0.5)
    wrong = gradient_canary(*poisson_scores(q, 1.0, 4000, 3, noise=0.5), mechanism, DELTA, 0.5)
    assert not right.contradicts(claim)
    assert wrong.contradicts(claim)
    assert right.mu_lower is None
    for one in (right, wrong):  # its ε is that of the noise which it leaves possible, from below
        assert one.sigma_upper is not None
        expected = epsilon(PoissonGaussian(q, one.sigma_upper, 20), EXAMPLE, DELTA).upper
        assert expected * 0.98 <= one.epsilon_lower <= expected
    assert wrong.sigma_upper is not None
    assert 0.5 <= wrong.sigma_upper < 0.65


def test_the_noise_found_solves_the_trade_off_of_one_step() -> None:
    q = 0.3
    found = gradient_canary(*poisson_scores(q, 0.5, 2000, 1), PoissonGaussian(q, 0.5, 0), DELTA, 1.0)
    assert found.fpr_upper is not None
    assert found.sigma_upper is not None
    sampled = norm.cdf(norm.ppf(1 - found.fpr_upper) - 1 / found.sigma_upper)
    assert (1 - q) * (1 - found.fpr_upper) + q * sampled == pytest.approx(found.fnr_upper, rel=1e-9)


def test_fewer_errors_than_the_sampler_allows_contradict_every_epsilon() -> None:
    """A canary sampled once in ten steps can't be seen in all of them."""
    found = gradient_canary([5.0] * 200, [0.0] * 200, PoissonGaussian(0.1, 1.0, 10), DELTA, 2.5)
    assert (found.sigma_upper, found.epsilon_lower) == (0.0, math.inf)
    assert found.contradicts(1e300)
    assert not found.contradicts(math.inf)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["epsilon_lower"] == "inf"


def test_scores_that_tell_nothing_give_zero() -> None:
    same = np.random.default_rng(0).normal(size=300)
    for mechanism in (Gaussian(1.0), PoissonGaussian(0.1, 1.0, 100)):
        found = gradient_canary(same, same, mechanism, DELTA, 0.5)
        assert (found.epsilon_lower, found.plain_lower) == (0.0, 0.0)


def test_an_accountant_out_of_reach_still_leaves_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """More noise and larger δ both have a smaller ε; if nothing can be computed, nothing is claimed."""
    asked: list[tuple[float, float]] = []

    def reluctant(mechanism: PoissonGaussian, unit: Unit, delta: float, *, method: str) -> Bound:
        asked.append((mechanism.sigma, delta))
        if mechanism.sigma < reach:
            raise Unsupported("Too much.")
        return Bound(3.0, 4.0, method, {})

    monkeypatch.setattr(audit, "epsilon", reluctant)
    scores, mechanism, reach = poisson_scores(0.5, 0.5, 500, 0), PoissonGaussian(0.5, 0.5, 10), 2.0
    found = gradient_canary(*scores, mechanism, 1e-20, 1.0)
    assert found.epsilon_lower == 3.0
    assert asked[0] == (found.sigma_upper, 1e-12)
    assert all(second[0] == 2 * first[0] for first, second in itertools.pairwise(asked))
    reach = math.inf
    with pytest.raises(Unsupported, match="Too much"):
        gradient_canary(*scores, mechanism, DELTA, 1.0)


def test_a_stricter_level_never_raises_the_bound() -> None:
    scores = gaussian_scores(1.0, 300, 0)
    levels = (1e-9, 0.001, 0.05, 0.4)
    canary = [gradient_canary(*scores, Gaussian(1.0), DELTA, 0.5, level).epsilon_lower for level in levels]
    assert canary == sorted(canary)
    assert canary[1] < canary[-1]


BAD_SCORES = [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]], [[1.0], [2.0, 3.0]], ["1"], [True], 1.0, None, [1j]]
BAD: list[dict[str, Any]] = [
    *({name: scores} for name in ("scores_in", "scores_out") for scores in BAD_SCORES),
    *({"delta": value} for value in (0.0, 1.0, -1e-5, 2, math.nan, math.inf, "1e-5", None)),
    *({"significance": value} for value in (0.0, 0.5, 1, -0.1, math.nan, "0.05", None)),
]


@pytest.mark.parametrize("bad", [*BAD, *({"threshold": v} for v in (math.nan, math.inf, "1", None))], ids=str)
def test_gradient_canaries_refuse_what_means_nothing(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"scores_in": [1.0], "scores_out": [0], "delta": DELTA, "threshold": 0.5}
    assert gradient_canary(mech=Gaussian(1.0), **good).canaries == 2
    with pytest.raises(AccountingError, match=r"^Expected .*\.$"):
        gradient_canary(mech=Gaussian(1.0), **{**good, **bad})


@pytest.mark.parametrize("mechanism", [ShuffledGaussian(1, 1.0), "gaussian", None], ids=str)
def test_gradient_canaries_name_the_mechanisms_they_know(mechanism: Mechanism) -> None:
    with pytest.raises(Unsupported, match="gaussian and poisson_gaussian"):
        gradient_canary([1.0], [0.0], mechanism, DELTA, 0.5)


def test_importing_the_audits_is_light() -> None:
    code = "import sys, dpft_accounting.audit, dpft_accounting.audit_one_run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"torch", "numpy", "scipy", "prv_accountant"})
