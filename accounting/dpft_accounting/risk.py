"""Privacy targets in terms of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._check import real
from .bound import Bound
from .compose import Composition
from .errors import AccountingError
from .pld import used
from .tradeoff import curve_of, power


@dataclass(frozen=True)
class Risk:
    """The most that any membership attack may reach: ``Risk(advantage=...)`` or ``Risk(tpr=..., fpr=...)``.

    ``advantage``: largest TPR − FPR at any threshold. ``tpr`` at ``fpr``: true-positive rate allowed at that
    false-positive rate. Errors: AccountingError for neither or both, or rates outside (0, 1), or tpr <= fpr.
    """

    advantage: float | None = None
    tpr: float | None = None
    fpr: float | None = None

    def __post_init__(self) -> None:
        if (self.advantage is None) == (self.tpr is None and self.fpr is None):  # neither form, or parts of both
            raise AccountingError("Expected Risk(advantage=...) or Risk(tpr=..., fpr=...), found neither or both.")
        for name in ("advantage",) if self.advantage is not None else ("tpr", "fpr"):
            value = getattr(self, name)
            if value is None:
                raise AccountingError(f"Expected tpr and fpr together, found no {name}.")
            if not 0 < real(name, value) < 1:
                raise AccountingError(f"Expected {name} strictly between 0 and 1, found {value!r}.")
        if self.tpr is not None and self.fpr is not None and self.tpr <= self.fpr:
            raise AccountingError(
                f"Expected tpr above fpr, found {self.tpr!r} and {self.fpr!r}: guessing alone reaches tpr = fpr."
            )

    @property
    def mu(self) -> float:
        """μ of the Gaussian that has exactly this risk."""
        return self.mu_at(self.advantage if self.tpr is None else self.tpr)

    def mu_at(self, value: float | None) -> float:
        """μ of the Gaussian whose advantage, or TPR at ``fpr``, is ``value``."""
        from scipy.special import ndtri

        assert value is not None  # one of the two forms was given
        if value >= 1:
            return 1e6
        if self.fpr is None:
            return 2 * float(ndtri((1 + value) / 2))
        return max(0.0, float(ndtri(value) - ndtri(self.fpr)))


def risk_of(risk: Risk, compositions: Sequence[Composition]) -> Bound:
    """Upper bound on the quantity that ``risk`` limits, for the worst composition."""
    import numpy as np

    curve = curve_of(compositions)
    value = float(curve(np.zeros(1))[0]) if risk.fpr is None else power(curve, risk.fpr)
    return Bound(0.0, value, "profile", used())
