"""What was run on the data, as values: every accountant, ledger and report reads these.

The meaning of a mechanism never changes; a new meaning gets a new class or a new version ``v``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ._check import exact_keys, integer, real
from .errors import AccountingError


@dataclass(frozen=True)
class Gaussian:
    """``steps`` releases of the full clipped sum, each with fresh Gaussian noise.

    ``sigma``: standard deviation of the noise divided by the clip norm, and by nothing else.
    Guarantee: μ-GDP with μ = s·sqrt(steps)/sigma (Dong et al. 2019), where s = 1 under add_remove and
    zero_out, 2 under replace; so all three adjacencies, in closed form.
    Edge cases: steps = 0 → ε 0; sigma = 0 → ε infinite.
    Errors: AccountingError for nan, infinite or negative values and for steps that are not whole.
    """

    kind: ClassVar[str] = "gaussian"
    sigma: float
    steps: int = 1

    def __post_init__(self) -> None:
        # Plain numbers, also from numpy: the JSON form must be the same wherever a value came from.
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=0))

    def with_steps(self, steps: int) -> Gaussian:
        """The same mechanism at another number of steps."""
        return replace(self, steps=steps)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``mechanism_from_dict`` undoes it."""
        return {"kind": self.kind, "v": 1, "sigma": self.sigma, "steps": self.steps}


@dataclass(frozen=True)
class PoissonGaussian:
    """``steps`` noisy clipped sums, each over a fresh Poisson sample: every unit independently with rate q.

    ``sigma``: standard deviation of the noise divided by the clip norm, and by nothing else.
    Guarantee: that of the subsampled Gaussian (Abadi et al. 2016). Holds only if the batches really are
    Poisson samples that nobody sees, empty ones included, and if q and steps do not depend on the data.
    Adjacency: add_remove and zero_out with every accountant; replace with PLD only.
    Edge cases: q = 1 is the full batch, equal to ``Gaussian``; steps = 0 → ε 0; sigma = 0 → ε infinite.
    Errors: AccountingError for q outside (0, 1], nan, infinite or negative values, steps that are not whole.
    """

    kind: ClassVar[str] = "poisson_gaussian"
    q: float
    sigma: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", real("q", self.q))
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=0))
        if not 0 < self.q <= 1:
            raise AccountingError(f"Expected a sampling rate q above 0 and at most 1, found {self.q!r}.")

    def with_steps(self, steps: int) -> PoissonGaussian:
        """The same mechanism at another number of steps."""
        return replace(self, steps=steps)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``mechanism_from_dict`` undoes it."""
        return {"kind": self.kind, "v": 1, "q": self.q, "sigma": self.sigma, "steps": self.steps}


Mechanism = Gaussian | PoissonGaussian

_FIELDS: dict[str, tuple[type[Mechanism], set[str]]] = {
    Gaussian.kind: (Gaussian, {"sigma", "steps"}),
    PoissonGaussian.kind: (PoissonGaussian, {"q", "sigma", "steps"}),
}


def mechanism_from_dict(value: Mapping[str, Any]) -> Mechanism:
    """The mechanism that ``to_dict`` described; AccountingError for an unknown kind, version or key."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise AccountingError(f"Expected a mechanism of kind {' or '.join(_FIELDS)}, found {kind!r:.60}.")
    cls, fields = _FIELDS[kind]
    checked = exact_keys(f"mechanism {kind}", value, fields | {"kind", "v"})
    if type(checked["v"]) is not int or checked["v"] != 1:
        raise AccountingError(f"Expected version 1 of mechanism {kind}, found {checked['v']!r:.60}.")
    return cls(**{name: checked[name] for name in fields})
