"""Figures of the report, as SVG text to stand inside the page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dpft_accounting import Unsupported, plots, profile

from dpft.engine.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def epsilon_over_steps(plan: Plan, charged: int) -> str:
    """Privacy spent as training goes on, with the planned budget and the point that the ledger has reached."""
    made = plots.epsilon_over_steps(
        plan.mechanism, plan.unit, plan.delta, charged=charged or None, budget=plan.epsilon.upper
    )
    return _inline(made, "steps", f"Epsilon over the steps, up to {plan.steps}")


def attack_trade_off(plan: Plan, charged: int, epsilon: float) -> str:
    """What attacks can reach after the steps charged, beside what ``epsilon`` alone would allow.

    Empty where the loss is too large for a curve: then nothing is ruled out."""
    found = profile(plan.mechanism.with_steps(charged), plan.unit)
    try:
        made = plots.trade_off(found, (epsilon, plan.delta))
    except Unsupported:
        return ""
    return _inline(made, "attack", "Largest true-positive rate of an attack by its false-positive rate")


def _inline(figure: Figure, name: str, label: str) -> str:
    """The figure as an element of a page that holds others: its names made its own, its meaning read aloud."""
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", plots.svg(figure))
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
