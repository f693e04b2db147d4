"""The plan is the promise: sampler, clip, noise and ledger are all made from this one frozen value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from dpft_accounting import (
    Bound,
    Budget,
    Gaussian,
    PoissonGaussian,
    Risk,
    Unit,
    calibrate,
    certify,
    check_delta,
)
from dpft_accounting import (
    noise_multiplier as calibrate_noise,
)

from dpft.config import PrivacySection
from dpft.config.privacy_section import Clipping
from dpft.errors import InputError


@dataclass(frozen=True)
class Plan:
    """What will run, and what it costs.

    Units: ``clip`` is the largest norm of one example's gradient, whichever kind of ``clipping`` brings it there;
    ``noise_multiplier`` is the noise's standard deviation over ``clip``; ``sample_rate`` the probability with which
    each record joins a logical batch; ``expected_batch_size`` the public constant that the noised sum is divided by
    (never the realised size); ``epsilon`` the certified bound at ``delta`` for all ``steps``."""

    unit: Unit
    sample_rate: float
    expected_batch_size: float
    steps: int
    clip: float
    noise_multiplier: float
    delta: float
    epsilon: Bound
    certificate: Mapping[str, Any]
    clipping: Clipping = "flat"

    @property
    def sampler(self) -> str:
        return "poisson" if self.sample_rate < 1 else "full batch"

    @property
    def mechanism(self) -> PoissonGaussian | Gaussian:
        """The event that the ledger charges; the sampler and the noise are made from the same numbers."""
        return _mechanism(self.sample_rate, self.noise_multiplier, self.steps)

    @property
    def noise_of_mean(self) -> float:
        """Standard deviation of the noise on each coordinate of the mean gradient that the optimizer sees; public."""
        return self.noise_multiplier * self.clip / self.expected_batch_size

    @property
    def budget(self) -> Budget:
        return Budget(epsilon=self.epsilon.upper, delta=self.delta)

    def follows(self, section: PrivacySection) -> bool:
        """Whether a kept plan has what stands in its recipe alone; the ledger vouches for mechanism, unit, budget."""
        mine = (self.clip, self.clipping, self.expected_batch_size)
        return mine == (section.clip, section.clipping, section.expected_batch)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; every figure is public."""
        return {
            **{k: v for k, v in asdict(self).items() if k not in ("unit", "epsilon", "certificate")},
            "sampler": self.sampler,
            "unit": self.unit.to_dict(),
            "epsilon": self.epsilon.to_dict(),
            "mechanism": self.mechanism.to_dict(),
            "certificate": dict(self.certificate),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of :meth:`to_dict`; a file that is not a plan raises :class:`InputError`.

        A plan of the time before there were kinds of clipping is one of flat clipping."""
        data = {"clipping": "flat", **data}
        _known_clipping(data["clipping"])
        try:
            plain = {k: data[k] for k in cls.__dataclass_fields__ if k not in ("unit", "epsilon")}
            unit, bound = Unit.from_dict(data["unit"]), Bound.from_dict(data["epsilon"])
            return cls(unit=unit, epsilon=bound, **plain)
        except (KeyError, TypeError) as error:
            raise InputError(f"Expected plan.json as dpft writes it; {error} is missing or wrong.") from None


def plan(
    *,
    delta: float,
    expected_batch: float,
    clip: float = 1.0,
    clipping: Clipping = "flat",
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    risk: Risk | None = None,
    examples: int | None = None,
    sample_rate: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    unit: str = "example",
) -> Plan:
    """Choose the noise for a budget or an attack risk, or the budget for a noise, and certify it by every accountant.

    Give ``epsilon``, ``risk`` (the most that membership attacks may reach) or ``noise_multiplier``; ``examples``
    (the number of records is public; adjacency zero-out) or ``sample_rate`` (it is secret; adjacency add/remove);
    ``epochs`` or ``steps``.
    ``clipping`` "auto-s" scales every example's gradient to just under ``clip`` instead of cutting the longer ones.
    ``delta`` at or above one over the number of units is refused. Touches no data.

    Errors: :class:`InputError` names the argument, what was expected, and the remedy."""
    _one_target(epsilon, noise_multiplier, risk)
    _one_of("examples", examples, "sample_rate", sample_rate)
    _one_of("epochs", epochs, "steps", steps)
    for name, value in (("delta", delta), ("expected_batch", expected_batch), ("clip", clip),
                        ("epsilon", epsilon), ("noise_multiplier", noise_multiplier), ("epochs", epochs)):  # fmt: skip
        _positive(name, value)
    _known_clipping(clipping)
    q, who = _sampling(examples, sample_rate, expected_batch, unit)
    _check_delta(delta, q, expected_batch, who)
    T = steps if steps is not None else math.ceil(epochs / q - 1e-9) if epochs is not None else 0
    if not isinstance(T, int) or T < 1:
        raise InputError(f"Expected steps={T} to be a whole number of at least 1.")
    if risk is not None:
        noise_multiplier = calibrate(lambda sigma: _mechanism(q, sigma, T), who, risk).value
    elif noise_multiplier is None:
        assert epsilon is not None  # one of the three was given
        noise_multiplier = calibrate_noise(epsilon, delta, q, T, who).value
    mechanism = _mechanism(q, noise_multiplier, T)
    found = certify(mechanism, who, delta)
    if epsilon is not None and found.bound.upper > epsilon * (1 + 1e-6):
        raise InputError(
            f"The accountants certify {found.bound.upper:.4f} where epsilon={epsilon:g} was asked. "
            f"Give noise_multiplier slightly above {noise_multiplier:g} instead of epsilon."
        )
    return Plan(
        who, q, expected_batch, T, clip, noise_multiplier, delta, found.bound, found.to_dict(), clipping=clipping
    )


def plan_from(section: PrivacySection, unit: str) -> Plan:
    """The plan that a recipe's ``[privacy]`` table asks for; touches no data. Whether it is carried out
    (``enabled``) is no part of it."""
    return plan(**section.model_dump(exclude={"enabled"}), unit=unit)


def _sampling(examples: int | None, sample_rate: float | None, expected_batch: float, unit: str) -> tuple[float, Unit]:
    if examples is None:
        assert sample_rate is not None  # one of the two was given
        if not 0 < sample_rate <= 1:
            raise InputError(f"Expected 0 < sample_rate={sample_rate:g} <= 1.")
        return float(sample_rate), Unit(unit, adjacency="add_remove")
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
        raise InputError(f"Expected examples={examples} to be a whole number of at least 1.")
    if expected_batch > examples:
        raise InputError(f"Expected expected_batch={expected_batch:g} to be at most examples={examples}.")
    return expected_batch / examples, Unit(unit, adjacency="zero_out", n_public=examples)


def _check_delta(delta: float, q: float, expected_batch: float, unit: Unit) -> None:
    check_delta(delta, unit)
    # Where the number of records is secret, the public figures still say about how many there are.
    if delta >= q / expected_batch:
        raise InputError(
            f"Expected delta={delta:g} below one over the number of units, about {q / expected_batch:.3g}: "
            "a larger delta permits publishing somebody's record outright. Set a smaller delta."
        )


def _mechanism(q: float, sigma: float, steps: int) -> PoissonGaussian | Gaussian:
    return Gaussian(sigma, steps) if q == 1 else PoissonGaussian(q, sigma, steps)


def _one_target(epsilon: float | None, noise_multiplier: float | None, risk: Risk | None) -> None:
    if risk is None:
        _one_of("epsilon", epsilon, "noise_multiplier", noise_multiplier)
    elif epsilon is not None or noise_multiplier is not None:
        raise InputError("Expected exactly one of epsilon, noise_multiplier and risk, found several.")


def _one_of(name: str, value: object, other: str, alternative: object) -> None:
    if (value is None) == (alternative is None):
        found = "neither" if value is None else "both"
        raise InputError(f"Expected exactly one of {name} and {other}, found {found}.")


def _known_clipping(kind: object) -> None:
    if kind not in get_args(Clipping):
        raise InputError(f'Expected clipping={kind!r} to be "flat" or "auto-s".')


def _positive(name: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"Expected {name}={value} to be a finite number above 0.")
