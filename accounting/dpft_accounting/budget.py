"""How much privacy may be spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._check import exact_keys, real
from .errors import AccountingError


@dataclass(frozen=True)
class Budget:
    """At most (``epsilon``, ``delta``) for everything together.

    Errors: AccountingError unless ε > 0 and 0 < δ < 1.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", real("epsilon", self.epsilon))
        object.__setattr__(self, "delta", real("delta", self.delta))
        if not self.epsilon > 0:
            raise AccountingError(f"Expected epsilon above 0, found {self.epsilon!r}.")
        if not 0 < self.delta < 1:
            raise AccountingError(f"Expected delta strictly between 0 and 1, found {self.delta!r}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``from_dict`` undoes it."""
        return {"epsilon": self.epsilon, "delta": self.delta}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Budget:
        """The budget that ``to_dict`` described; AccountingError for anything else."""
        return cls(**exact_keys("budget", value, {"epsilon", "delta"}))
