"""``dpft cache``: the recorded outputs that runs keep under their private folders."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dpft.cache.folder import delete, describe, find


def show_caches(path: Path, *, as_json: bool) -> None:
    """One row a cache. What it says is private: lengths are a function of the records."""
    found = [describe(folder) for folder in find(path)]
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    table = Table("cache", "MB", "records", "tokens", "numbers a token", "type", "recorded", box=None)
    for one in found:
        figures = [_figure(value) for value in (one.records, one.tokens, one.width)]
        state = ", ".join(one.points) if one.whole else "not whole; computed anew on resuming"
        table.add_row(one.folder, f"{one.megabytes:.1f}", *figures, one.dtype or "", state)
    console.print(table if found else f"no cache in {path}")


def delete_caches(path: Path) -> None:
    """Remove every cache in ``path``; a run that is resumed computes its own anew."""
    found = find(path)
    freed = sum(delete(folder) for folder in found)
    Console(highlight=False, soft_wrap=True, markup=False).print(
        f"{len(found)} deleted, {freed / 1e6:.1f} MB freed" if found else f"no cache in {path}"
    )


def _figure(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
