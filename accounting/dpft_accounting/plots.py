"""Curves of a privacy guarantee as matplotlib figures; every point is what an accountant says.

Lines differ in dash and width, not in colour alone, so that a copy in black and white can be read. No pyplot, no
window, no setting of matplotlib is left changed.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ._check import real
from .accountants import epsilon
from .budget import Budget
from .errors import AccountingError
from .mechanisms import Mechanism, ShuffledGaussian
from .pld import SOUND_DELTA
from .profile import Profile
from .units import Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES: tuple[float, ...] = tuple(10 ** (k / 8) for k in range(-48, 1))  # 1e-6 to 1, each power of ten among them
MARKED_RATES = (0.01, 0.001)

_STEPS = 12
_HALVINGS = 6  # noise points between sigma and its half, and its double
_EPSILONS = 24
_INK, _SOFT, _ACCENT = "#26323f", "#5b6b7b", "#1668a8"


def epsilon_over_steps(
    mechanism: Mechanism, unit: Unit, delta: float, *, charged: int | None = None, budget: Budget | float | None = None
) -> Figure:
    """ε at ``delta`` while training goes on, up to the planned steps (epochs, for shuffled batches).

    ``charged``: steps to mark, as a ledger counts them. ``budget``: the ε to draw as a limit.
    Errors: AccountingError without steps or without noise, and as for ``epsilon``.
    """
    planned = mechanism.planned
    if planned < 1 or not (hasattr(mechanism, "steps") or hasattr(mechanism, "epochs")):
        raise AccountingError(
            f"Expected a mechanism of at least one step, and not one released at once, found {mechanism!r:.60}."
        )
    # Denser at the start, where the curve bends, and from the first step on.
    counts = {max(1, round(planned * (i / _STEPS) ** 2)) for i in range(1, _STEPS + 1)}
    steps = sorted(counts | {1} | ({charged} if charged else set()))
    values = [_finite(epsilon(mechanism.with_steps(s), unit, delta).upper) for s in steps]
    limit = budget.epsilon if isinstance(budget, Budget) else budget
    figure, axes = _figure(f"Privacy loss as training goes on, at delta = {delta:g}")
    axes.plot([0, *steps], [0.0, *values], color=_ACCENT, lw=2, label="epsilon, upper bound")
    if limit is not None:
        axes.axhline(limit, color=_INK, lw=1, ls="--", label=f"planned budget: {_above(limit)}")
    from matplotlib.ticker import MaxNLocator

    word = "epochs" if isinstance(mechanism, ShuffledGaussian) else "steps"
    if charged:
        at = values[steps.index(charged)]
        _mark(axes, charged, at, f"charged: {charged} {word}, epsilon {_above(at)}")
    axes.set(xlabel=word, ylabel="epsilon", xlim=(0, max(planned, *steps)))
    axes.set_ylim(0, max(*values, limit or 0.0) * 1.08 or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.legend(loc="lower right", frameon=False)
    return figure


def epsilon_over_noise(make: Callable[[float], Mechanism], unit: Unit, delta: float, *, around: float) -> Figure:
    """ε at ``delta`` for noise multipliers from half of ``around`` to its double; ``make(sigma)`` is the mechanism.

    Errors: AccountingError unless ``around`` > 0, and as for ``epsilon``.
    """
    if not real("around", around, minimum=0) > 0:
        raise AccountingError(f"Expected a noise multiplier above 0 to plot around, found {around!r}.")
    sigmas = [around * 2 ** (k / _HALVINGS) for k in range(-_HALVINGS, _HALVINGS + 1)]
    values = [_finite(epsilon(make(sigma), unit, delta).upper) for sigma in sigmas]
    figure, axes = _figure(f"Privacy loss by noise, at delta = {delta:g}")
    axes.plot(sigmas, values, color=_ACCENT, lw=2, label="epsilon, upper bound")
    at = values[_HALVINGS]
    _mark(axes, around, at, f"noise multiplier {around:g}: epsilon {_above(at)}")
    axes.set(xlabel="noise multiplier (noise standard deviation / clip norm)", ylabel="epsilon (log scale)")
    if min(values) > 0:
        axes.set_yscale("log")
        _plain_ticks(axes)
    axes.set_xlim(sigmas[0], sigmas[-1])
    axes.legend(loc="upper right", frameon=False)
    return figure


def delta_over_epsilon(profile: Profile, at_delta: float) -> Figure:
    """The privacy profile: δ by ε, from no ε at all to somewhat beyond the ε at ``at_delta``, which is marked.

    Errors: as for ``Profile.epsilon``; AccountingError without noise.
    """
    chosen = _finite(profile.epsilon(at_delta).upper)
    # Not below what PLD can see: other accountants would take minutes for a line.
    farthest = chosen if at_delta < 4 * SOUND_DELTA else profile.epsilon(max(at_delta / 30, 2 * SOUND_DELTA)).upper
    farthest = max(farthest, chosen, 0.1)
    epsilons = sorted({farthest * k / _EPSILONS for k in range(_EPSILONS + 1)} | {chosen})
    deltas = [profile.delta(e).upper for e in epsilons]
    figure, axes = _figure("Privacy profile: every pair (epsilon, delta) that holds")
    axes.plot(epsilons, deltas, color=_ACCENT, lw=2, label="delta, upper bound")
    _mark(axes, chosen, deltas[epsilons.index(chosen)], f"epsilon {_above(chosen)} at delta {at_delta:g}")
    axes.set(xlabel="epsilon", ylabel="delta (log scale)", xlim=(0, farthest))
    if max(deltas) > 0:
        axes.set_yscale("log")
        axes.set_ylim(min(d for d in deltas if d > 0) / 2, 1)
    axes.legend(loc="lower left", frameon=False)
    return figure


def trade_off(profile: Profile, pair: tuple[float, float] | None = None, *, rates: Sequence[float] = RATES) -> Figure:
    """The most that a membership attack can reach: true-positive rate by false-positive rate, both logarithmic.

    ``pair``: (ε, δ), drawn as what that statement alone would allow; the mechanism's own curve is never above it
    where the statement is true of it. The diagonal is guessing.
    """
    found = profile.trade_off(rates)
    figure, axes = _figure("Most that any membership attack can reach")
    if pair is not None:
        alone = [allowed(rate, *pair) for rate in rates]
        label = f"what ({_above(pair[0])}, {pair[1]:g}) alone would allow"
        axes.plot(rates, alone, color=_INK, lw=1.2, ls="--", label=label)
    axes.plot(*zip(*found, strict=True), color=_ACCENT, lw=2.2, label="this mechanism")
    axes.plot(rates, rates, color=_SOFT, lw=1, ls=":", label="guessing")
    for rate, marker in zip(MARKED_RATES, "os", strict=True):
        tpr = profile.tpr(rate)
        _mark(axes, rate, tpr, f"FPR {percent(rate)}: TPR at most {percent(tpr)}", marker)
    axes.set(xlabel="false-positive rate (FPR)", ylabel="true-positive rate (TPR)", xscale="log", yscale="log")
    axes.set(xlim=(min(rates), 1), ylim=(min(rates), 1.25))
    axes.legend(loc="lower right", frameon=False)
    return figure


def allowed(fpr: float, epsilon: float, delta: float) -> float:
    """The largest true-positive rate at ``fpr`` that (``epsilon``, ``delta``)-privacy by itself rules not out.

    Kairouz et al. 2015: TPR <= δ + e^ε·FPR and 1 − TPR >= e^(−ε)(1 − δ − FPR).
    """
    if epsilon > 700 or fpr >= 1 - delta:  # e^ε would overflow, or nothing is ruled out
        return 1.0
    return min(1.0, delta + math.exp(epsilon) * fpr, 1 - math.exp(-epsilon) * (1 - delta - fpr))


def percent(value: float) -> str:
    """A probability as a percentage of three digits, four close to 100, rounded up."""
    hundredfold = min(value * 100, 100.0)
    if hundredfold <= 0:
        return "0 %"
    digits = 2 if hundredfold > 99 else 2 - math.floor(math.log10(hundredfold))
    return f"{min(100.0, math.ceil(round(hundredfold * 10**digits, 6)) / 10**digits):.10g} %"


def svg(figure: Figure) -> str:
    """``figure`` as an SVG element, the same text for the same data: no date, no random names."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "dpft"}):  # else the names of its parts are random
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    # A thousandth of a point is finer than any screen; numbers below 1 are scales, and kept.
    return re.sub(r"\b([1-9]\d*\.\d{3})\d+", r"\1", text[text.index("<svg") :])


def _figure(title: str) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AccountingError(
            "Expected matplotlib for a plot, found none. Install it: pip install matplotlib."
        ) from None
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6eaee", lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _mark(axes: Axes, x: float, y: float, label: str, marker: str = "o") -> None:
    # Words stand in the legend, in the corner that no curve of this kind enters: beside the point they would
    # cover the line for some settings.
    axes.plot([x], [y], marker, color=_ACCENT, ms=6, mec="white", label=label, clip_on=False, zorder=5)


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finite(value: float) -> float:
    if math.isinf(value):
        raise AccountingError("Expected a mechanism with noise to plot, found an infinite epsilon. Add noise.")
    return value


def _above(value: float) -> str:
    """An ε to four decimals, rounded up."""
    if math.isinf(value):
        return "infinite"
    return f"{math.ceil(value * 1e4) / 1e4:.4f}"
