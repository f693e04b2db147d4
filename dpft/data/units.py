"""Rows that belong to one unit: each time the unit is drawn, one of its rows is taken, and no other counts.

The unit's contribution to a step is then one row's clipped gradient, whichever row that is, so its norm is at most
the clip and the accounting of Poisson sampling over units holds as it stands: given every choice of rows, two
neighbouring data sets differ in one contribution of norm at most the clip, and the choice for one unit is independent
of the others'.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from dpft.data.records import Keyed


class Units(Sequence[Any]):
    """One item a unit, in the order of first rows: a fresh draw among the unit's examples each time it is asked for.

    The draw comes from the operating system: it is as secret as which units were sampled."""

    def __init__(self, records: Sequence[Keyed], examples: Sequence[Any]) -> None:
        assert len(records) == len(examples)
        found: dict[str, list[int]] = {}
        for row, record in enumerate(records):
            assert record.group is not None  # the recipe names a column, and every row has a value there
            found.setdefault(record.group, []).append(row)
        self._units, self._examples = list(found.values()), examples

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[secrets.choice(self._units[index])]

    def __repr__(self) -> str:
        return "Units(...)"


def by_unit(records: Sequence[Keyed], examples: Sequence[Any]) -> Sequence[Any]:
    """The examples as they are, or one item a unit where rows are grouped."""
    return Units(records, examples) if any(record.group is not None for record in records) else examples
