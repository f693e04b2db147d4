"""Whom the guarantee protects, and which two data sets count as neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ._check import exact_keys, integer, real, text
from .errors import AccountingError

Adjacency = Literal["add_remove", "zero_out", "replace"]


@dataclass(frozen=True)
class Unit:
    """The unit of privacy (``"example"``, ``"user"``, ``"chunk"``, ...) and the neighbouring relation.

    - ``add_remove``: one unit more or less. The number of units is itself secret: ``n_public`` is None.
    - ``zero_out``: one unit replaced by a blank that contributes nothing. The number of units is public.
    - ``replace``: one unit replaced by any other; the sum moves by up to twice the clip norm. Public n.

    Errors: AccountingError for an empty name, an unknown adjacency, or an ``n_public`` that contradicts it.
    """

    name: str
    adjacency: Adjacency = "add_remove"
    n_public: int | None = None

    def __post_init__(self) -> None:
        text("unit name", self.name)
        if self.adjacency not in get_args(Adjacency):
            raise AccountingError(f"Expected adjacency to be one of {get_args(Adjacency)}, found {self.adjacency!r}.")
        if self.adjacency == "add_remove":
            if self.n_public is not None:
                raise AccountingError(
                    "Expected no n_public under add_remove, where the number of units is secret. "
                    "Leave it out, or choose zero_out if the number may be published."
                )
        else:
            n_public = integer(f"n_public under {self.adjacency}", self.n_public, minimum=1)
            object.__setattr__(self, "n_public", n_public)

    @property
    def sensitivity(self) -> float:
        """How far one unit can move the clipped sum, in clip norms."""
        return 2.0 if self.adjacency == "replace" else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``from_dict`` undoes it."""
        return {"name": self.name, "adjacency": self.adjacency, "n_public": self.n_public}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Unit:
        """The unit that ``to_dict`` described; AccountingError for anything else."""
        return cls(**exact_keys("unit", value, {"name", "adjacency", "n_public"}))


def check_delta(delta: float, unit: Unit) -> float:
    """``delta`` as a float if it can mean anything for this unit.

    Publishing one unit picked at random satisfies δ = 1/n, hence δ must be below 1/n where n is public;
    where n is secret only 0 < δ < 1 can be checked. Errors: AccountingError.
    """
    number = real("delta", delta)
    if not 0 < number < 1:
        raise AccountingError(f"Expected delta strictly between 0 and 1, found {delta!r}.")
    if unit.n_public is not None and number >= 1 / unit.n_public:
        raise AccountingError(
            f"Expected delta below 1/n = {1 / unit.n_public:.3g} for {unit.n_public} units, found {delta!r}: "
            "such a delta allows a unit to be published whole. Choose a smaller one."
        )
    return number
