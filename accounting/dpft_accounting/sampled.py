"""Noisy clipped sums, by how their batches are drawn. ``sigma`` is always noise std / clip norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._check import integer, rate, real
from .errors import AccountingError
from .units import Adjacency
from .value import Mechanism

ANY: tuple[Adjacency, ...] = ("add_remove", "zero_out", "replace")


@dataclass(frozen=True)
class Gaussian(Mechanism):
    """``steps`` releases of the full clipped sum, each with fresh Gaussian noise.

    Guarantee: μ-GDP with μ = s·sqrt(steps)/sigma (Dong et al. 2019), where s = 1 under add_remove and
    zero_out, 2 under replace; so all three adjacencies, in closed form.
    Edge cases: steps = 0 → ε 0; sigma = 0 → ε infinite.
    Errors: AccountingError for nan, infinite or negative values and for steps that are not whole.
    """

    kind: ClassVar[str] = "gaussian"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ANY
    sigma: float
    steps: int = 1

    def __post_init__(self) -> None:
        # Plain numbers, also from numpy: the JSON form must be the same wherever a value came from.
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=0))


@dataclass(frozen=True)
class PoissonGaussian(Mechanism):
    """``steps`` noisy clipped sums, each over a fresh Poisson sample: every unit independently with rate q.

    Guarantee: that of the subsampled Gaussian (Abadi et al. 2016). Holds only if the batches really are
    Poisson samples that nobody sees, empty ones included, and if q and steps do not depend on the data.
    Adjacency: add_remove and zero_out with every accountant; replace with PLD only.
    Edge cases: q = 1 is the full batch, equal to ``Gaussian``; steps = 0 → ε 0; sigma = 0 → ε infinite.
    Errors: AccountingError for q outside (0, 1], nan, infinite or negative values, steps that are not whole.
    """

    kind: ClassVar[str] = "poisson_gaussian"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ANY
    q: float
    sigma: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", rate("q", self.q))
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=0))


@dataclass(frozen=True)
class TruncatedPoissonGaussian(Mechanism):
    """Poisson samples of ``n`` units cut to at most ``cap`` by keeping a uniformly random subset of that size.

    Guarantee: per step the mixture of Ganesh 2025 (arXiv 2508.15089): with the chance that the batch is full,
    the sum may move by twice the clip norm. From ``cap`` = b + 6·sqrt(b) on, b = n·q, the cut is free.
    Adjacency: zero_out only, with n public and equal to the unit's ``n_public``; PLD only.
    Edge cases: ``cap`` >= n never cuts, and is ``PoissonGaussian``.
    Errors: as for ``PoissonGaussian``, and for n or cap below 1.
    """

    kind: ClassVar[str] = "truncated_poisson_gaussian"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("zero_out",)
    n: int
    q: float
    cap: int
    sigma: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", integer("n", self.n, minimum=1))
        object.__setattr__(self, "q", rate("q", self.q))
        object.__setattr__(self, "cap", integer("cap", self.cap, minimum=1))
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=0))


@dataclass(frozen=True)
class ShuffledGaussian(Mechanism):
    """Passes over the data in shuffled or fixed order: every unit in exactly one batch of each epoch.

    Guarantee: one Gaussian with μ = s·sqrt(epochs)/sigma, s = 1 under zero_out and 2 under replace, since in
    each epoch one batch alone differs. No amplification is claimed: Poisson's ε for shuffled batches is wrong
    by a factor of 2 to 7 (Chua et al. 2024, arXiv 2403.17673). Also right for batches of fixed size drawn
    without replacement within an epoch.
    Adjacency: zero_out and replace; one unit more or less would move all later batches.
    A ledger charges epochs: reserve an epoch before its first step.
    """

    kind: ClassVar[str] = "shuffled_gaussian"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("zero_out", "replace")
    epochs: int
    sigma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", integer("epochs", self.epochs, minimum=0))
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))

    @property
    def planned(self) -> int:
        return self.epochs

    def with_steps(self, steps: int) -> ShuffledGaussian:
        """The same mechanism at another number of epochs."""
        return ShuffledGaussian(steps, self.sigma)


@dataclass(frozen=True)
class UserELS(Mechanism):
    """Example-level sampling for user-level privacy: at most ``max_per_user`` examples a user, each clipped alone.

    Every example joins a batch independently with rate ``q``, so a user moves the sum by Binomial(max_per_user,
    q) clip norms: a mixture of Gaussians per step (Choquette-Choo et al. 2023, arXiv 2310.15526, corollary 4.7).
    Adjacency: add_remove and zero_out of a **user**; the examples kept of a user must follow from that user's
    own alone. PLD only. (Users sampled and clipped as a whole are ``PoissonGaussian`` with unit "user".)
    Edge cases: max_per_user = 1 is ``PoissonGaussian``; q = 1 is ``Gaussian`` with sigma/max_per_user.
    """

    kind: ClassVar[str] = "user_els"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("add_remove", "zero_out")
    q: float
    sigma: float
    steps: int
    max_per_user: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", rate("q", self.q))
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=0))
        object.__setattr__(self, "max_per_user", integer("max_per_user", self.max_per_user, minimum=1))


@dataclass(frozen=True)
class BandedMF(Mechanism):
    """Correlated noise of a ``bands``-banded strategy matrix with columns of norm at most 1 (matrix factorisation).

    The units are split into ``bands`` groups, each by its **own** randomness; step t samples group t mod bands
    with rate bands·q. Guarantee: ``PoissonGaussian(bands·q, sigma, ceil(steps/bands))`` (Choquette-Choo et al.
    2023, arXiv 2306.08153). Adjacency: add_remove and zero_out.
    Errors: AccountingError for bands·q > 1, and as for ``PoissonGaussian``.
    """

    kind: ClassVar[str] = "banded_mf"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ("add_remove", "zero_out")
    q: float
    sigma: float
    steps: int
    bands: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", rate("q", self.q))
        object.__setattr__(self, "sigma", real("sigma", self.sigma, minimum=0))
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=0))
        object.__setattr__(self, "bands", integer("bands", self.bands, minimum=1))
        # A rate of 1/bands is meant to give exactly one; the last bit of the product must not refuse it.
        if self.bands * self.q > 1 + 1e-12:
            raise AccountingError(
                f"Expected bands·q of at most 1, found {self.bands} · {self.q!r}: a group can't be sampled more "
                "often than always. Choose fewer bands or a smaller q."
            )
