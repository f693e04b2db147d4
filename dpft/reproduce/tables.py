"""Two tables as rows of text, of what is planned and of what came out. Markdown here; rich shows the same rows."""

from __future__ import annotations

from collections.abc import Sequence

from dpft.config.expected_section import CountFigure, ExpectedSection, Figure
from dpft.cost import in_words
from dpft.report.write import figure
from dpft.reproduce.dry import Dry
from dpft.reproduce.results import Result, Side

DRY = ("recipe", "claimed", "certified", "delta", "PLD, reference", "PLD", "PRV", "RDP", "steps",
       "parameters published", "parameters", "CPU", "H100", "GB", "error")  # fmt: skip
RUN = ("recipe", "metric", "private, published", "private", "not private, published", "not private", "epsilon claimed",
       "epsilon", "parameters published", "parameters", "seconds", "device", "error")  # fmt: skip
NOTE = "* from memory or with low confidence, not verified; + not published but computed from shapes."

Rows = Sequence[Sequence[str]]

_NOTHING = ExpectedSection(source="nowhere", metric="accuracy")


def dry_rows(found: Sequence[Dry]) -> list[list[str]]:
    """One row a recipe, in the order of :data:`DRY`; times and memory are estimates."""
    return [_dry_row(one) for one in found]


def run_rows(found: Sequence[Result]) -> list[list[str]]:
    """One row a recipe, in the order of :data:`RUN`."""
    return [_run_row(one) for one in found]


def markdown(head: Sequence[str], rows: Rows) -> str:
    """A table; bars in a cell are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _dry_row(one: Dry) -> list[str]:
    expected, plan = one.expected or _NOTHING, one.plan
    times = [in_words(estimate.seconds) for estimate in one.cost] or ["", ""]
    prv = one.row("prv")
    return [
        one.name,
        _figure(expected.epsilon_claimed),
        figure(plan.epsilon.upper) if plan else "",
        f"{plan.delta:g}" if plan else "",
        _figure(expected.epsilon_pld),
        *(figure(row["upper"]) if row else "" for row in (one.row("pld"), prv, one.row("rdp"))),
        str(plan.steps) if plan else "",
        _figure(expected.parameters),
        "" if one.parameters is None else f"{one.parameters:,}",
        *times,
        f"{max(estimate.bytes for estimate in one.cost) / 1e9:.1f}" if one.cost else "",
        " ".join(one.faults),
    ]


def _run_row(one: Result) -> list[str]:
    expected, twin = one.expected or _NOTHING, one.twin or Side()
    seconds = [f"{side.seconds:.0f}" for side in (one.private, twin) if side.seconds is not None]
    devices = dict.fromkeys(side.device for side in (one.private, twin) if side.device)
    return [
        one.name,
        expected.metric,
        _figure(expected.private),
        _number(one.private.value),
        _figure(expected.same_method or expected.nonprivate),
        _number(twin.value),
        _figure(expected.epsilon_claimed),
        "" if one.epsilon is None else f"{figure(one.epsilon)} at {one.delta:g}",
        _figure(expected.parameters),
        "" if one.parameters is None else f"{one.parameters:,}",
        " + ".join(seconds),
        ", ".join(devices),
        " ".join(side.fault for side in (one.private, twin) if side.fault),
    ]


def _figure(published: Figure | CountFigure | None) -> str:
    if published is None:
        return ""
    mark = {"unverified": "*", "computed": "+"}.get(published.provenance.split()[0], "")
    return (f"{published.value:,}" if isinstance(published, CountFigure) else f"{published.value:g}") + mark


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
