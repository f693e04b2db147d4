"""``dpft methods``: the support matrix, from the registry."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from dpft.config.presets import PRESETS
from dpft.peft.families import ALIASES, FAMILIES
from dpft.peft.registry import METHODS, cells

_WIDTH = 100


def show_methods(*, as_json: bool) -> None:
    """Method by model family; every cell is tested against the one-example oracle."""
    if as_json:
        print(json.dumps([asdict(cell) for cell in cells()], indent=2))
        return
    console = Console(width=_WIDTH, highlight=False, markup=False)  # a preset's arrays are no markup
    reasons: dict[str, int] = {}
    console.print(_matrix(reasons))
    for reason, number in reasons.items():
        console.print(f"({number}) {reason}")
    for family in FAMILIES.values():
        if family.note:
            console.print(f"{family.model_type}: {family.note}")
    for row in dict.fromkeys(ALIASES.values()):
        console.print(f"like {row}: {', '.join(alias for alias, like in ALIASES.items() if like == row)}")
    console.print()
    console.print(_methods())
    if PRESETS:
        console.print()
        console.print(_presets())


def _matrix(reasons: dict[str, int]) -> Table:
    """Methods down, families across; a number refers to ``reasons``, which is filled on the way."""
    table = Table("method", *FAMILIES, box=None, padding=(0, 1, 0, 0))
    rows: dict[str, list[str]] = {name: [] for name in METHODS}
    for cell in cells():
        number = 0 if cell.supported else reasons.setdefault(cell.reason, len(reasons) + 1)
        rows[cell.method].append(f"- ({number})" if number else "yes")
    for name, marks in rows.items():
        table.add_row(name, *marks)
    return table


def _methods() -> Table:
    table = Table("method", "what trains", "merges", "identity", box=None, padding=(0, 1, 0, 0))
    for name, method in METHODS.items():
        table.add_row(name, method.what, _yes(method.merges), _yes(method().identity))
    return table


def _presets() -> Table:
    table = Table("preset", "stands for", box=None, padding=(0, 2, 0, 0))
    for name, section in PRESETS.items():
        table.add_row(name, ", ".join(f"{key} = {json.dumps(value)}" for key, value in section.items()))
    return table


def _yes(value: bool) -> str:
    return "yes" if value else "no"
