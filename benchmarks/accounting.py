"""Our accountant and calibration beside Opacus, prv-accountant and dp-accounting, on one grid of settings.

    python benchmarks/accounting.py --write

Every library runs on its defaults, in a process of its own, and the libraries take turns on each setting. A failure
(an error, too slow, out of memory) is counted and never hidden.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from accounting_peers import EPSILON, NOISE, Answer, Setting, Worker
from common import heading, publish, table

RATES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
STEPS = (1, 10, 100, 1_000, 10_000, 100_000)
EPSILONS = (0.1, 0.5, 1.0, 3.0, 8.0, 30.0)
DELTAS = (1e-9, 1e-7, 1e-5, 1e-4)
_LEAST_SIGMA = 0.05  # ours never goes below it for sampled batches, so there is nothing to compare there
_SLACK = 1e-3

Answers = Mapping[str, Sequence[Answer]]


def grid() -> list[Setting]:
    """72 settings: every pair of rate and steps with two of the (delta, epsilon), so that each occurs often."""
    return [
        Setting(q, steps, DELTAS[(i + 2 * j + 3 * k) % 4], EPSILONS[(i + j + 3 * k) % 6])
        for i, q in enumerate(RATES)
        for j, steps in enumerate(STEPS)
        for k in range(2)
    ]


# What a library says, and what is right: settings with known faults of the libraries named.
TRAPS = (
    ("opacus RDP", "orders end at 63", Setting(0.01, 100, 1e-8, 0, 10.0)),
    ("opacus GDP (no guarantee)", "a central limit, no bound", Setting(1e-4, 10_000, 1e-6, 0, 0.4)),
    ("opacus PRV", "float64 at a small delta", Setting(1e-5, 1_000_000, 1e-10, 0, 0.5)),
    ("prv-accountant", "mean of the truncated loss", Setting(0.2757, 70_400, 1.302e-7, 0, 8.423)),
    ("prv-accountant", "mean of the truncated loss", Setting(0.1557, 86_050, 1.815e-7, 0, 2.819)),
    ("prv-accountant", "mean of the truncated loss", Setting(0.1401, 560, 7.872e-6, 0, 1.277)),
)


def main() -> None:
    options = _options()
    settings = grid()[:: max(1, 72 // options.settings)]
    noise = _ask(NOISE, settings, options.limit)
    at = [s._replace(sigma=a.value) for s, a in zip(settings, noise["**dpft**"], strict=True) if a.value]
    epsilon = _ask(EPSILON, at, options.limit)
    publish("accounting", "\n".join([
        heading("Accounting: dpft beside other libraries"),
        f"{len(settings)} settings, at most {options.limit:g} s each.\n",
        "## Noise for a target (epsilon, delta)\n", _noise_table(settings, noise, options.limit), "",
        f"## Epsilon of the {len(at)} mechanisms that this gave\n", _epsilon_table(at, epsilon), "",
        "## Known traps\n", _trap_table(options.limit),
    ]), write=options.write)  # fmt: skip


def _ask(asked: Mapping[str, Any], settings: Sequence[Setting], limit: float) -> dict[str, list[Answer]]:
    workers = {name: Worker(ask, limit) for name, ask in asked.items()}
    answers: dict[str, list[Answer]] = {name: [] for name in asked}
    for number, setting in enumerate(settings, start=1):
        for name, worker in workers.items():
            answers[name].append(worker.answer(setting))
        print(f"{number} of {len(settings)}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.stop()
    return answers


def _noise_table(settings: Sequence[Setting], answers: Answers, limit: float) -> str:
    ours = answers["**dpft**"]
    checks = Worker(EPSILON["**dpft, certify()**"], 10 * limit)
    rows = []
    for name, theirs in answers.items():
        unsound, waste = 0, []
        for setting, own, answer in zip(settings, ours, theirs, strict=True):
            if answer.value is None or own.value is None or own.value <= _LEAST_SIGMA:
                continue
            waste.append(answer.value / own.value)
            # Only less noise than ours can be too little; then the truth decides.
            if answer.value < own.value * (1 - _SLACK):
                found = checks.answer(setting._replace(sigma=answer.value)).value
                unsound += bool(found) and found[0] > setting.epsilon * (1 + _SLACK)
        rows.append([name, *_times(theirs), *_spread(waste), str(unsound), _failures(theirs)])
    checks.stop()
    columns = ["library", "solved", "median", "95 %", "worst", "noise / ours, median", "worst", "too little noise",
               "failures"]  # fmt: skip
    return table(columns, rows)


def _epsilon_table(settings: Sequence[Setting], answers: Answers) -> str:
    ours, truth = answers["**dpft, epsilon()**"], answers["**dpft, certify()**"]
    rows = []
    for name, theirs in answers.items():
        widths, ratios, unsound = [], [], 0
        for own, certified, answer in zip(ours, truth, theirs, strict=True):
            if answer.value is None or own.value is None:
                continue
            lower, upper = answer.value
            if lower > 0 and math.isfinite(upper):
                widths.append((upper - lower) / upper)
            if own.value[1] > 0:
                ratios.append(upper / own.value[1])
            unsound += bool(certified.value) and not upper >= certified.value[0] * (1 - _SLACK)
        width = f"{statistics.median(widths):.2%}" if widths else "no lower bound"
        rows.append([name, *_times(theirs), width, *_spread(ratios), str(unsound), _failures(theirs)])
    columns = ["library", "answered", "median", "95 %", "worst", "width of the bounds, median",
               "upper / ours, median", "worst", "below what is possible", "failures"]  # fmt: skip
    return table(columns, rows)


def _trap_table(limit: float) -> str:
    rows = []
    right = Worker(EPSILON["**dpft, certify()**"], 10 * limit)
    for name, what, setting in TRAPS:
        worker = Worker(EPSILON[name], 10 * limit)
        answer, truth = worker.answer(setting), right.answer(setting)
        worker.stop()
        said = answer.failure or f"{answer.value[1]:.4f}"
        q, steps, delta, _, sigma = setting
        bounds = f"{truth.value[0]:.4f} to {truth.value[1]:.4f}" if truth.value else truth.failure
        rows.append([name, what, f"q={q:g}, sigma={sigma:g}, T={steps:,}, delta={delta:g}", said, bounds])
    right.stop()
    return table(["library", "fault", "setting", "its epsilon", "certified by dpft"], rows)


def _times(answers: Sequence[Answer]) -> list[str]:
    good = sorted(a.seconds for a in answers if not a.failure)
    if not good:
        return ["0", "-", "-", "-"]
    high = good[min(len(good) - 1, math.ceil(0.95 * len(good)) - 1)]
    return [
        str(len(good)),
        *(f"{t:.3f} s" if t < 1 else f"{t:.1f} s" for t in (statistics.median(good), high, good[-1])),
    ]


def _spread(ratios: Sequence[float]) -> list[str]:
    """Median, and the ratio that is farthest from 1."""
    if not ratios:
        return ["-", "-"]
    worst = max(ratios, key=lambda r: abs(math.log(r)) if 0 < r < math.inf else math.inf)
    return [f"{statistics.median(ratios):.3f}", f"{worst:.3f}"]


def _failures(answers: Sequence[Answer]) -> str:
    kinds = Counter(a.failure for a in answers if a.failure)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=72, help="how many of the 72 settings")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that one answer may take")
    parser.add_argument("--write", action="store_true", help="put the tables into results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
