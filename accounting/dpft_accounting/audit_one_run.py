"""Audit of a single run: many canaries at once, each put in or left out by its own coin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._check import integer
from .audit import CANARY, Audit, checked_level, checked_scores
from .errors import AccountingError
from .units import check_delta

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_PRECISION = 1e-6  # of the ε found


def one_run(
    scores_in: ArrayLike, scores_out: ArrayLike, delta: float, guesses: int, significance: float = 0.05
) -> Audit:
    """Audit of a single run into which each of m canaries was put, or not, by its own fair coin.

    The ``guesses``/2 highest of all m scores are guessed in, the ``guesses``/2 lowest out; the rest abstain.
    ``guesses`` must be fixed before the scores are seen: for several, divide ``significance`` by their number.
    Ties count against the auditor: of equal scores the canaries that are out rank highest. A tie broken
    blindly is right at least as often, so the bound stays sound.
    Guarantee: whatever the mechanism, ``epsilon_lower`` exceeds the true ε with probability at most
    ``significance``. It is the largest ε that the number of correct guesses rejects, down to 1e-6; 0 if none.
    Far below the truth by nature.
    Reference: Steinke et al. 2023 (arXiv 2305.08846). Errors: AccountingError for values that mean nothing.
    """
    import numpy as np

    inside, outside = checked_scores("scores_in", scores_in), checked_scores("scores_out", scores_out)
    delta, level = check_delta(delta, CANARY), checked_level(significance)
    guesses = integer("guesses", guesses, minimum=2)
    canaries = inside.size + outside.size
    if guesses % 2 or guesses > canaries:
        raise AccountingError(f"Expected guesses to be even and at most the {canaries} canaries, found {guesses}.")
    included = np.repeat([True, False], [inside.size, outside.size])
    ranked = included[np.lexsort((~included, np.concatenate([inside, outside])))]
    half = guesses // 2
    correct = int(ranked[-half:].sum()) + int((~ranked[:half]).sum())
    lower = _largest_rejected(canaries, guesses, correct, delta, level)
    return Audit(lower, delta, "one_run", level, canaries, guesses=guesses, correct=correct)


def p_value(epsilon: float, delta: float, canaries: int, guesses: int, correct: int) -> float:
    """Bound on the chance of at least ``correct`` right guesses under (ε, δ); may exceed 1, values unchecked.

    β + 2mδ·max_{1<=i<=v} (Pr[B >= v−i] − β)/i with B ~ Binomial(r, e^ε/(1 + e^ε)) and β = Pr[B >= v].
    """
    import numpy as np
    from scipy.special import expit
    from scipy.stats import binom

    # In terms of the wrong guesses: no cancellation in Pr[B >= v−i] − β, nor in 1 − e^ε/(1 + e^ε).
    wrong, rate = guesses - correct, expit(-epsilon)
    beta = float(binom.cdf(wrong, guesses, rate))
    counts = np.arange(1, correct + 1)
    averages = np.cumsum(binom.pmf(wrong + counts, guesses, rate)) / counts
    return beta + 2 * canaries * delta * float(averages.max(initial=0.0))


def _largest_rejected(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """ε, from the rejected side, at which the p-value passes ``level`` (< 0.5, below which it only grows with ε)."""
    # At ε = ln r + 1 all r guesses are right with probability above 1/2, so that nothing is rejected.
    low, high = 0.0, math.log(guesses) + 1
    if p_value(low, delta, canaries, guesses, correct) > level:
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        rejected = p_value(middle, delta, canaries, guesses, correct) <= level
        low, high = (middle, high) if rejected else (low, middle)
    return low
