"""What every mechanism is: a frozen value with a JSON form, its steps, and the adjacencies it has a proof for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from .units import Adjacency


@dataclass(frozen=True)
class Mechanism:
    """Base of all mechanisms. The meaning of one never changes; a new meaning gets a new class or version ``v``.

    ``steps`` counts what a ledger charges one by one. Whatever is released at once has one step.
    """

    kind: ClassVar[str]
    adjacencies: ClassVar[tuple[Adjacency, ...]]

    @property
    def planned(self) -> int:
        """Number of steps of the whole mechanism."""
        return int(getattr(self, "steps", 1))

    def with_steps(self, steps: int) -> Mechanism:
        """The same mechanism at another number of steps. Errors: AccountingError unless whole and >= 0."""
        changed: dict[str, Any] = {"steps": steps}  # the classes that are released at once have no such field
        return replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``mechanism_from_dict`` undoes it."""
        return {"kind": self.kind, "v": 1, **{f.name: to_json(getattr(self, f.name)) for f in fields(self)}}

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        """The mechanism with these fields in JSON form; ``values`` has all of them and no others."""
        return cls(**values)


def to_json(value: object) -> object:
    """Nested mechanisms, tuples of them and tuples of (name, mechanism) pairs as JSON; the rest unchanged."""
    if isinstance(value, Mechanism):
        return value.to_dict()
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return {name: to_json(item) for name, item in value}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value
