"""dp-accounting's own loss distributions, for a second opinion on mechanisms that prv-accountant does not know.

The same theory as ``pld.py`` in an independent implementation: one-step losses, convolutions and their truncation are
the library's. Slow, so ``certify`` alone asks it. It knows no selection, and no unit that moves between parts.
"""

from __future__ import annotations

import math
from typing import Any

from .bound import Bound
from .combined import EpsDelta
from .compose import Chosen, Composition, Part
from .errors import Unsupported
from .quiet import float_warnings_silenced
from .sampled import PoissonGaussian, TruncatedPoissonGaussian, UserELS
from .steps import gaussian_reach, reach
from .versions import versions

_MAX_POINTS = 4e5  # of one step: about a second in the library


def epsilon(composition: Composition, delta: float, grid: float) -> Bound:
    """Upper bound on ε on about this ``grid``. Errors: Unsupported where the library has no answer."""
    widest = max([gaussian_reach(composition.mu), *(reach(part) for part in composition.parts)])
    dx = max(grid, 2 * widest / _MAX_POINTS)
    if dx > 0.1:
        raise Unsupported("A privacy loss this large is too slow in dp-accounting.")
    with float_warnings_silenced():
        pieces = [_piece(part, dx) for part in composition.parts]
        if composition.mu > 0:
            pieces.append(_gaussian(1 / composition.mu, 1.0, dx, replace=False))
        total = pieces[0]
        for other in pieces[1:]:
            total = total.compose(other)
        upper = float(total.get_epsilon_for_delta(delta))
    if math.isinf(upper):
        raise Unsupported(f"dp-accounting has no finite answer at delta={delta:g} here.")
    return Bound(0.0, upper, "dp-accounting", versions("dp-accounting", "numpy", "scipy"), dx)


def _piece(part: Part, dx: float) -> Any:
    step = part.step
    if part.relation == "backward" or isinstance(step, Chosen):
        raise Unsupported("dp-accounting knows neither selection with a profile nor units that change parts.")
    if isinstance(step, EpsDelta):
        return _to_dense(_stated(step, dx)).self_compose(part.steps)
    return _one_step(step, dx, replace=part.relation == "replace").self_compose(part.steps)


def _one_step(step: Any, dx: float, *, replace: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as library

    if isinstance(step, PoissonGaussian):
        return _gaussian(step.sigma, step.q, dx, replace=replace)
    if isinstance(step, UserELS):
        from scipy.stats import binom

        counts = [k for k in range(step.max_per_user + 1) if binom.pmf(k, step.max_per_user, step.q) > 1e-30]
        return library.from_mixture_gaussian_mechanism(
            standard_deviation=step.sigma,
            sensitivities=[float(k) for k in counts],
            sampling_probs=[float(binom.pmf(k, step.max_per_user, step.q)) for k in counts],
            value_discretization_interval=dx,
        )
    assert isinstance(step, TruncatedPoissonGaussian)  # the last kind there is
    return library.from_truncated_subsampled_gaussian_mechanism(
        dataset_size=step.n,
        sampling_probability=step.q,
        truncated_batch_size=step.cap,
        noise_multiplier=step.sigma,
        value_discretization_interval=dx,
    )


def _gaussian(sigma: float, q: float, dx: float, *, replace: bool) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.from_gaussian_mechanism(
        standard_deviation=sigma,
        sampling_prob=q,
        value_discretization_interval=dx,
        neighboring_relation=(NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE),
    )


def _stated(step: EpsDelta, dx: float) -> Any:
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.from_privacy_parameters(common.DifferentialPrivacyParameters(step.epsilon, step.delta), dx)


def _to_dense(found: Any) -> Any:
    """The library composes dense mass functions with dense ones only."""
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.PrivacyLossDistribution(found._pmf_remove.to_dense_pmf())
