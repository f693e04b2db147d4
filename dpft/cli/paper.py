"""``dpft account --paper``: the claims of a published table, accounted again."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from itertools import groupby

from dpft_accounting.paper import PaperAccount, account_all, paper, rows
from rich.console import Console
from rich.table import Table

_WIDE = 118  # columns that the table needs with the settings in it
_MARKS = {"unverified (memory)": "*", "computed": "+"}


def account_paper(name: str, *, as_json: bool) -> None:
    """The claims of a published table, accounted again."""
    about, settings = paper(name), rows(name)
    found: list[PaperAccount] = []
    # One process for every few settings: starting one takes as long as two of them.
    workers = min(os.cpu_count() or 1, 4, len(settings) // 4)
    for one in account_all(settings, processes=workers):
        found.append(one)
        if sys.stderr.isatty():
            end = "\n" if len(found) == len(settings) else ""
            print(f"\raccounted {len(found)} of {len(settings)} settings", end=end, file=sys.stderr, flush=True)
    if as_json:
        value = {"paper": name, "source": about.source, "notes": list(about.notes), "provenance": about.provenance}
        print(json.dumps(value | {"rows": [one.to_dict() for one in found]}, indent=2, allow_nan=False))
        return
    console = Console()
    console.print(f"{about.source}\n", highlight=False)
    wide = console.width >= _WIDE
    if not wide:  # the settings above the table, by number
        for setting, group in groupby(enumerate(found, 1), lambda pair: pair[1].row.setting):
            console.print(f"{', '.join(str(number) for number, _ in group):>6}  {setting}", highlight=False)
        console.print()
    console.print(_paper_table(found, wide=wide))
    for note in (*_footnotes(found, about.provenance), *about.notes):
        console.print(f"· {note}", highlight=False)


def _paper_table(found: Sequence[PaperAccount], *, wide: bool) -> Table:
    """Twelve columns with the settings, or eleven that fit into 80 characters with their numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("setting" if wide else "")
    for name in ("q", "sigma", "steps", "delta", "claim", "PLD", "PRV"):
        table.add_column(name, no_wrap=True, justify="right")
    for name in ("RDP", *(["classic"] if wide else []), "no amp", "holds?"):
        table.add_column(name, no_wrap=True, justify="right")
    for number, one in enumerate(found, 1):
        table.add_row(one.row.setting if wide else str(number), *_cells(one, wide=wide))
    return table


def _cells(one: PaperAccount, *, wide: bool) -> list[str]:
    row, prv = one.row, one.by("prv")
    holds = {None: "-", True: "yes", False: "NO"}[one.holds_with_poisson]
    return [
        f"{row.q:.5f}",
        f"{row.noise_multiplier:g}{_MARKS.get(row.noise_multiplier_provenance, ' ')}",
        str(row.steps),
        f"{row.delta:.3g}{'!' if one.refused else ' '}",
        "-" if row.epsilon_claimed is None else f"{row.epsilon_claimed:g}",
        _above(one.by("pld").upper, 4),
        f"{math.floor(prv.lower * 1e3) / 1e3:.3f}-{_above(prv.upper, 3)}",
        _above(one.by("rdp").upper, 3),
        *([_above(one.rdp_classic, 3)] if wide else []),
        _above(one.no_amplification.upper, 2),
        holds,
    ]


def _above(value: float, digits: int) -> str:
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}" if math.isfinite(value) else "inf"


def _footnotes(found: Sequence[PaperAccount], provenance: dict[str, str]) -> list[str]:
    claims = [one for one in found if one.row.epsilon_claimed is not None]
    shown = sum(bool(one.holds_with_poisson) for one in claims)
    shuffled = sum(bool(one.holds_without_amplification) for one in claims)
    marks = "; ".join(f"{mark} {provenance[name]}" for name, mark in _MARKS.items() if name in provenance)
    refused = [one for one in found if one.refused]
    notes = [
        f"holds?: the certified epsilon of Poisson batches is within the claim ({shown} of {len(claims)} claims).",
        "no amp: what can be shown for shuffled batches, as the published code draws them "
        f"({shuffled} of {len(claims)} claims hold so).",
        f"sigma is not verified in every row: {marks}; no mark: verified in the published code.",
        "RDP is converted as today; the moments accountant that older claims rest on (classic) gives more.",
    ]
    if refused:
        notes.append(
            f"! delta is not below one over the number of records ({len(refused)} rows): it allows a record to be "
            "published whole, and dpft refuses it where that number is public."
        )
    return notes
