"""``dpft methods``: the support matrix, from the registry."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from dpft.peft.registry import FAMILIES, METHODS


def show_methods(*, as_json: bool) -> None:
    """Method by model family; every cell is tested against the one-example oracle."""
    if as_json:
        cells = [
            {"method": name, "family": f.model_type, "default_targets": list(f.lora_targets), "note": f.note}
            for name in METHODS
            for f in FAMILIES.values()
        ]
        print(json.dumps(cells, indent=2))
        return
    console = Console()
    for name, what in METHODS.items():
        console.print(f"{name}: {what}", highlight=False)
        table = Table("family", "default targets", "remarks", box=None, padding=(0, 2, 0, 0))
        for family in FAMILIES.values():
            table.add_row(family.model_type, ", ".join(family.lora_targets), family.note)
        console.print(table)
