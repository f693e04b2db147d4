"""Puts the results of ``methods.py`` and ``methods_cost.py`` into the table of recipes/README.md.

    python benchmarks/methods_table.py

It measures nothing: a line for each method that both have measured on this machine, in bfloat16.
"""

from __future__ import annotations

from pathlib import Path

from common import RESULTS, slug, table

_PLACE = Path(__file__).resolve().parent.parent / "recipes" / "README.md"
_BEGIN, _END = "<!-- methods_table.py -->\n", "<!-- end -->\n"


def main() -> None:
    accuracy = rows_of(_read("methods"), "| method |")
    cost: dict[str, dict[str, str]] = {}
    for kind in ("methods-cost", "methods-cost-more"):  # measured in two sittings
        if path_of(kind).exists():
            cost |= rows_of(_read(kind).partition("bfloat16")[2], "| method |")
    columns = ["method", "trained numbers", "private (%)", "not private (%)"]
    columns += ["ms, 64 sentences", "time, private / ordinary", "MB above the model", "memory, private / ordinary"]
    lines = [line(name, accuracy[name], cost[name]) for name in accuracy if name in cost]
    before, _, rest = _PLACE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _PLACE.write_text(f"{before}{_BEGIN}{table(columns, lines)}\n{_END}{after}")


def line(name: str, accuracy: dict[str, str], cost: dict[str, str]) -> list[str]:
    return [
        name,
        *(accuracy[key] for key in ("trained numbers", "private (%)", "not private (%)")),
        cost["ms, private"],
        cost["time, private / ordinary"].partition(" ")[0],
        cost["private"],
        cost["memory, private / ordinary"],
    ]


def rows_of(text: str, start: str) -> dict[str, dict[str, str]]:
    """The first table that begins with ``start``: name -> column -> cell.

    >>> rows_of("words\\n| method | a |\\n|---|---|\\n| x | 1 |\\n\\nmore", "| method |")
    {'x': {'method': 'x', 'a': '1'}}
    """
    head, _, *body = (text[text.index(start) :]).partition("\n\n")[0].splitlines()
    columns, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in (head, *body))
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def path_of(kind: str) -> Path:
    return RESULTS / f"{kind}-{slug()}.md"


def _read(kind: str) -> str:
    return path_of(kind).read_text()


if __name__ == "__main__":
    main()
