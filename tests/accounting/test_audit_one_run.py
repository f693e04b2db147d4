"""Audits of one run: a bound that stays below the truth as often as it promises, and faults that it finds."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from dpft_accounting import AccountingError, Gaussian, Unit, epsilon
from dpft_accounting.audit import Audit
from dpft_accounting.audit_one_run import one_run, p_value
from scipy.stats import binom

Array = np.ndarray[Any, np.dtype[Any]]
EXAMPLE = Unit("example")
DELTA = 1e-5
LEVEL = 0.05
REPEATS = 200
# A sound bound is too high in at most Binomial(200, 0.05) repetitions, hence in more than this with probability
# below 1e-4 (it is 22, a rate of 11 %).
MOST_FAILURES = int(binom.isf(1e-4, REPEATS, LEVEL))


def coin_scores(mu: float, m: int, seed: int) -> tuple[Array, Array]:
    """m canaries of one run, each in by a fair coin."""
    rng = np.random.default_rng(seed)
    included = rng.random(m) < 0.5
    scores = rng.normal(mu * included, 1)
    return scores[included], scores[~included]


def with_correct(canaries: int, guesses: int, correct: int) -> tuple[list[float], list[float]]:
    """Scores of which exactly ``correct`` of ``guesses`` guesses come out right."""
    half = guesses // 2
    top = correct // 2
    included = [i >= correct - top for i in range(half)]  # lowest scores: right when out
    included += [i % 2 == 0 for i in range(canaries - guesses)]
    included += [i < top for i in range(half)]  # highest scores: right when in
    inside = [float(i) for i, flag in enumerate(included) if flag]
    return inside, [float(i) for i, flag in enumerate(included) if not flag]


@pytest.mark.parametrize(
    # Tolerance: the spread of a single best of seven is 0.14 to 0.31, and the known figures come from few.
    ("mu", "m", "known"),
    [(1, 1000, 1.9), (1, 10_000, 2.4), (2, 1000, 3.7), (2, 10_000, 4.5), (3, 1000, 4.9), (3, 10_000, 6.2)],
)
def test_one_run_reaches_the_known_bounds(mu: float, m: int, known: float) -> None:
    """Best of seven numbers of guesses, uncorrected: to reproduce figures, not to audit."""
    shares = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    best = [
        max(one_run(*coin_scores(mu, m, seed), DELTA, 2 * int(m * share / 2)).epsilon_lower for share in shares)
        for seed in range(6)
    ]
    assert np.mean(best) == pytest.approx(known, abs=0.25)


@pytest.mark.parametrize(("true_epsilon", "guesses"), [(0.5, 100), (2.0, 100), (4.0, 400)])
def test_one_run_is_too_high_no_more_often_than_it_says(true_epsilon: float, guesses: int) -> None:
    """Randomised response, at which the bound is sharp: every guess is right with probability e^ε/(1 + e^ε)."""
    failures = 0
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        included = rng.random(1000) < 0.5
        answers = included ^ (rng.random(1000) < 1 / (1 + math.exp(true_epsilon)))
        scores = np.where(answers, 1, -1) * rng.uniform(1, 2, 1000)
        failures += one_run(scores[included], scores[~included], 1e-12, guesses).contradicts(true_epsilon)
    assert failures <= MOST_FAILURES


def test_an_eighth_of_the_noise_is_found_in_one_run() -> None:
    """mu = 1/4 is claimed (ε 0.93), and mu = 2 is run. A single run is no sharper tool than that."""
    claim = epsilon(Gaussian(4.0), EXAMPLE, DELTA).upper
    for seed in range(10):
        assert one_run(*coin_scores(2.0, 1000, seed), DELTA, 100).contradicts(claim)
        assert not one_run(*coin_scores(0.25, 1000, seed), DELTA, 100).contradicts(claim)


def outcomes(rates: list[float]) -> list[float]:
    """Pr[k right guesses], by listing every way in which independent guesses can turn out."""
    total = [0.0] * (len(rates) + 1)
    for right in itertools.product([True, False], repeat=len(rates)):
        total[sum(right)] += math.prod(r if ok else 1 - r for ok, r in zip(right, rates, strict=True))
    return total


@pytest.mark.parametrize(("eps", "delta", "extra"), [(0.0, 0.01, 0), (0.7, 0.05, 3), (2.0, 1e-4, 0), (3.0, 0.3, 1)])
@pytest.mark.parametrize("guesses", [1, 2, 5, 8])
def test_the_p_value_is_its_formula_written_out(eps: float, delta: float, extra: int, guesses: int) -> None:
    chances = outcomes([math.exp(eps) / (1 + math.exp(eps))] * guesses)
    for correct in range(guesses + 1):
        tail = math.fsum(chances[correct:])
        slopes = [(math.fsum(chances[correct - i :]) - tail) / i for i in range(1, correct + 1)]
        expected = tail + 2 * (guesses + extra) * delta * max(slopes, default=0.0)
        assert p_value(eps, delta, guesses + extra, guesses, correct) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("delta", [1e-3, 0.05])
def test_no_private_mechanism_beats_the_p_value(eps: float, delta: float) -> None:
    """Two (ε, δ) ones by enumeration: each canary betrayed with probability δ, or all of them at once."""
    guesses = 8
    rate = math.exp(eps) / (1 + math.exp(eps))
    fair = outcomes([rate] * guesses)
    each = outcomes([delta + (1 - delta) * rate] * guesses)
    for correct in range(guesses + 1):
        limit = p_value(eps, delta, guesses, guesses, correct) + 1e-12
        assert math.fsum(each[correct:]) <= limit
        assert delta + (1 - delta) * math.fsum(fair[correct:]) <= limit


@pytest.mark.parametrize(("m", "r", "delta"), [(100, 40, 1e-5), (100, 40, 0.02), (1000, 100, 1e-4), (60, 60, 0.1)])
def test_the_bound_is_the_only_place_where_the_p_value_passes_the_level(m: int, r: int, delta: float) -> None:
    """Also where 2mδ is above 1: everything below is rejected, nothing above. More right guesses, higher bound."""
    previous = 0.0
    grid = np.linspace(0, math.log(r) + 3, 60)
    for correct in range(r + 1):
        found = one_run(*with_correct(m, r, correct), delta, r)
        assert (found.correct, found.guesses, found.canaries) == (correct, r, m)
        assert found.epsilon_lower >= previous
        previous = found.epsilon_lower
        for eps in grid:
            if found.epsilon_lower == 0 or abs(eps - found.epsilon_lower) > 2e-6:
                rejected = p_value(float(eps), delta, m, r, correct) <= LEVEL
                assert rejected == (eps < found.epsilon_lower)
    assert previous > 0 or delta > 0.01


def test_ten_thousand_right_guesses_are_no_trouble() -> None:
    """Closed form: all right means e^ε/(1 + e^ε) = level^(1/r); δ is too small to matter."""
    found = one_run(*with_correct(10_000, 10_000, 10_000), 1e-15, 10_000)
    rate = LEVEL ** (1 / 10_000)
    assert found.epsilon_lower == pytest.approx(math.log(rate / (1 - rate)), abs=2e-6)


def test_ties_count_against_the_auditor() -> None:
    tied = one_run([1, 1, 1], [1, 1, 1], DELTA, 6)
    assert (tied.correct, tied.epsilon_lower) == (0, 0.0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        inside, outside = rng.integers(0, 3, 8).astype(float), rng.integers(0, 3, 7).astype(float)
        for guesses in (2, 6, 14):
            fixed = one_run(inside, outside, DELTA, guesses).correct
            blind = one_run(inside + rng.random(8) / 9, outside + rng.random(7) / 9, DELTA, guesses).correct
            assert fixed is not None
            assert blind is not None
            assert fixed <= blind


def test_the_order_of_scores_does_not_matter() -> None:
    inside, outside = coin_scores(1.0, 300, 0)
    assert one_run(inside, outside, DELTA, 60) == one_run(inside[::-1], list(outside[::-1]), DELTA, 60)


def test_scores_that_tell_nothing_give_zero() -> None:
    same = np.random.default_rng(0).normal(size=300)
    assert one_run(same, same, DELTA, 100).epsilon_lower == 0.0


def test_an_audit_is_a_plain_record() -> None:
    found = one_run(*coin_scores(2.0, 200, 0), DELTA, 40)
    assert Audit(**json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    assert found.to_dict()["fpr_upper"] is None
    assert found.contradicts(found.epsilon_lower - 1e-9)
    assert not found.contradicts(found.epsilon_lower)
    with pytest.raises(AttributeError):
        found.epsilon_lower = 0.0  # type: ignore[misc]
    for claim in (-1.0, math.nan, "8"):
        with pytest.raises(AccountingError, match="claimed epsilon"):
            found.contradicts(claim)  # type: ignore[arg-type]


def test_a_stricter_level_never_raises_the_bound() -> None:
    coins = coin_scores(2.0, 1000, 0)
    bounds = [one_run(*coins, DELTA, 100, level).epsilon_lower for level in (1e-9, 0.001, 0.05, 0.4)]
    assert bounds == sorted(bounds)
    assert bounds[1] < bounds[-1]


BAD_SCORES = [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]], [[1.0], [2.0, 3.0]], ["1"], [True], 1.0, None, [1j]]
BAD: list[dict[str, Any]] = [
    *({name: scores} for name in ("scores_in", "scores_out") for scores in BAD_SCORES),
    *({"delta": value} for value in (0.0, 1.0, -1e-5, 2, math.nan, math.inf, "1e-5", None)),
    *({"significance": value} for value in (0.0, 0.5, 1, -0.1, math.nan, "0.05", None)),
]


@pytest.mark.parametrize("bad", [*BAD, *({"guesses": v} for v in (0, -2, 1, 3, 6, 2.0, math.nan, True, None))], ids=str)
def test_one_run_refuses_what_means_nothing(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"scores_in": [1.0, 2.0], "scores_out": [0, -1, 3], "delta": DELTA, "guesses": 4}
    assert one_run(**good).guesses == 4
    with pytest.raises(AccountingError, match=r"^Expected .*\.$"):
        one_run(**{**good, **bad})
