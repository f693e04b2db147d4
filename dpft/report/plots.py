"""Figures of the report, as SVG text to stand inside the page."""

from __future__ import annotations

import io

from dpft_accounting import epsilon

from dpft.engine.plan import Plan

_POINTS = 12
_INK, _ACCENT = "#26323f", "#1668a8"


def epsilon_over_steps(plan: Plan, charged: int) -> str:
    """Privacy spent as training goes on, with the planned budget and the point that the ledger has reached."""
    import matplotlib

    matplotlib.use("svg", force=False)
    from matplotlib.figure import Figure

    steps = sorted(
        {max(1, round(plan.steps * (i / _POINTS) ** 1.5)) for i in range(1, _POINTS + 1)} | {max(charged, 1)}
    )
    values = [epsilon(plan.mechanism.with_steps(s), plan.unit, plan.delta).upper for s in steps]
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, *steps], [0.0, *values], color=_ACCENT, lw=2)
    axes.axhline(plan.epsilon.upper, color=_INK, lw=1, ls="--")
    axes.annotate(
        f"planned budget {plan.epsilon.upper:.4f}", (0, plan.epsilon.upper), xytext=(4, -12),
        textcoords="offset points", color=_INK, fontsize=9,
    )  # fmt: skip
    if charged:
        axes.plot([charged], [values[steps.index(charged)]], "o", color=_ACCENT, ms=7, clip_on=False)
        axes.annotate(
            f"charged: {charged} steps", (charged, values[steps.index(charged)]), xytext=(-8, -34),
            textcoords="offset points", ha="right", color=_ACCENT, fontsize=9,
        )  # fmt: skip
    axes.set_xlabel("steps")
    axes.set_ylabel(f"epsilon at delta = {plan.delta:g}")
    axes.set_xlim(0, plan.steps)
    axes.set_ylim(0, plan.epsilon.upper * 1.08)
    axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "dpft"}):  # else ids are random, and no page is like another
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
