"""Mechanisms made of mechanisms, and guarantees that come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ._check import integer, real, text
from .errors import AccountingError
from .sampled import ANY
from .units import Adjacency
from .value import Mechanism

_DEEPEST = 20
_MOST_PARTS = 100_000
_level: ContextVar[int] = ContextVar("level", default=0)  # of nesting, while a JSON form is read

Trials = Literal["geometric", "logarithmic", "negative_binomial", "poisson"]


class _Released(Mechanism):
    """Released at once: one step, which is all or nothing."""

    def with_steps(self, steps: int) -> Mechanism:
        """Nothing for 0, itself for 1, and so many independent releases for more."""
        count = integer("steps", steps, minimum=0)
        return self if count == 1 else Sequential([self] * count)


@dataclass(frozen=True)
class EpsDelta(_Released):
    """A guarantee stated elsewhere: (``epsilon``, ``delta``) for the unit and adjacency it is used with.

    Guarantee: what was stated, no more; composed as the worst mechanism that satisfies it (Kairouz et al. 2015).
    Errors: AccountingError unless 0 <= epsilon < ∞ and 0 <= delta < 1.
    """

    kind: ClassVar[str] = "eps_delta"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ANY
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", real("epsilon", self.epsilon, minimum=0))
        object.__setattr__(self, "delta", real("delta", self.delta, minimum=0))
        if self.delta >= 1:
            raise AccountingError(f"Expected delta below 1, found {self.delta!r}.")


@dataclass(frozen=True)
class Sequential(_Released):
    """Several mechanisms on the same data. Each may use what the earlier ones released; its parameters may not.

    Guarantee: composition of the privacy losses, not a sum of epsilons. For parameters that do follow from
    earlier private outputs use a ledger with an RDP filter. Empty: nothing was run, ε 0.
    """

    kind: ClassVar[str] = "sequential"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ANY
    mechanisms: tuple[Mechanism, ...]

    def __init__(self, mechanisms: Iterable[Mechanism]) -> None:
        object.__setattr__(self, "mechanisms", tuple(mechanisms))
        _check_parts(self, self.mechanisms)

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        if not isinstance(values["mechanisms"], list):
            raise AccountingError(f"Expected mechanisms to be a list, found {values['mechanisms']!r:.60}.")
        return cls(_nested(value) for value in values["mechanisms"])


@dataclass(frozen=True)
class Parallel(_Released):
    """Mechanisms on disjoint parts of the data, by name of the part.

    Which part a unit belongs to may depend on that unit alone (or be public). Guarantee: add_remove and zero_out:
    the worst part, since a unit is in one part only. Replace: the old unit may be in one part and the new one
    in another, so the two worst parts' add/remove guarantees together, or one part's own under replace.
    Errors: AccountingError for no parts at all.
    """

    kind: ClassVar[str] = "parallel"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ANY
    parts: tuple[tuple[str, Mechanism], ...]

    def __init__(self, parts: Mapping[str, Mechanism]) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise AccountingError(f"Expected parts to be a mapping from names to mechanisms, found {parts!r:.60}.")
        named = sorted((text("part", name), part) for name, part in parts.items())
        object.__setattr__(self, "parts", tuple(named))
        _check_parts(self, [part for _, part in named])

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        if not isinstance(values["parts"], Mapping):
            raise AccountingError(f"Expected parts to be a mapping, found {values['parts']!r:.60}.")
        return cls({name: _nested(part) for name, part in values["parts"].items()})


@dataclass(frozen=True)
class Select(_Released):
    """The best of K independent runs of ``base``, K drawn once, in secret: only the winner leaves.

    K follows ``dist`` with mean ``mean``: truncated negative binomial with ``shape`` η > -1 (1 geometric, 0
    logarithmic), or Poisson, which may draw no run at all. Guarantee: see ``select.py`` and ``tuning.py`` for the
    bounds and their conditions (Papernot & Steinke 2022; the profile bound is derived there). Mean >= 1 but for
    Poisson. Adjacency: that of ``base``.
    """

    kind: ClassVar[str] = "select"
    adjacencies: ClassVar[tuple[Adjacency, ...]] = ANY
    base: Mechanism
    mean: float
    dist: Trials = "geometric"
    shape: float | None = None

    def __post_init__(self) -> None:
        _check_parts(self, [self.base])
        least = 0.0 if self.dist == "poisson" else 1.0
        object.__setattr__(self, "mean", real("mean", self.mean, minimum=least))
        known = {"geometric": 1.0, "logarithmic": 0.0, "poisson": None}
        if isinstance(self.dist, str) and self.dist in known:
            if self.shape is not None and self.shape != known[self.dist]:
                raise AccountingError(f"Expected no shape for dist {self.dist!r}, found {self.shape!r}. Leave it out.")
            object.__setattr__(self, "shape", known[self.dist])
        elif self.dist == "negative_binomial":
            object.__setattr__(self, "shape", real("shape", self.shape))
            if not -1 < self.shape <= 100:  # type: ignore[operator]  # a number since the line above
                raise AccountingError(f"Expected shape above -1 and at most 100, found {self.shape!r}.")
        else:
            expected = [*known, "negative_binomial"]
            raise AccountingError(f"Expected dist to be one of {expected}, found {self.dist!r:.60}.")
        if not 0 < self.mean <= 1e6:
            raise AccountingError(f"Expected mean above 0 and at most 1000000, found {self.mean!r}.")

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        return cls(_nested(values["base"]), values["mean"], values["dist"], values["shape"])


def _nested(value: Mapping[str, Any]) -> Mechanism:
    """A part in JSON form, refused before a file nested too deep can exhaust the stack."""
    from .mechanisms import mechanism_from_dict  # it knows this file's classes, so it can't be imported above

    level = _level.get()
    if level >= _DEEPEST:
        raise AccountingError(f"Expected at most {_DEEPEST} levels of mechanisms in mechanisms.")
    token = _level.set(level + 1)
    try:
        return mechanism_from_dict(value)
    finally:
        _level.reset(token)


def _check_parts(whole: Mechanism, parts: Iterable[Mechanism]) -> None:
    """Only mechanisms, few enough, not too deep. Depth and size are kept on the value, so this is not recursive."""
    depth, size = 0, 1
    for part in parts:
        if not isinstance(part, Mechanism):
            raise AccountingError(f"Expected {whole.kind} to hold mechanisms, found {part!r:.60}.")
        depth = max(depth, getattr(part, "_depth", 0))
        size += getattr(part, "_size", 1)
    if depth >= _DEEPEST or size > _MOST_PARTS:
        raise AccountingError(f"Expected at most {_DEEPEST} levels and {_MOST_PARTS} parts in {whole.kind}.")
    object.__setattr__(whole, "_depth", depth + 1)
    object.__setattr__(whole, "_size", size)
