"""Our accounting and calibration beside Opacus, prv-accountant and dp-accounting, on one grid of settings.

    python benchmarks/accounting.py --write

Each library runs in a process of its own, and they take turns on each setting. A failure (an error, too slow, out of
memory) is counted and never hidden. A number counts as wrong only where our certified lower bound proves it wrong.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from accounting_peers import CERTIFIED, EPSILON, NOISE, OURS, Answer, Ask, Setting, Worker

RATES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
STEPS = (1, 10, 100, 1_000, 10_000, 100_000)
EPSILONS = (0.1, 0.5, 1.0, 3.0, 8.0, 30.0)
DELTAS = (1e-9, 1e-7, 1e-5, 1e-4)
_LEAST_SIGMA = 0.05  # ours never goes below it where anything is sampled: there is no least noise to compare with
_SLACK = 1e-3  # relative, of epsilon
_PATIENCE = 60.0  # least limit, in seconds, of what is asked for the truth and not for the time

# What is wrong with a library, and a setting that shows it. Its epsilon here sets prv-accountant's error (1 % of it).
TRAPS = (
    ("prv-accountant", "mean of the truncated loss", Setting(0.1401, 560, 7.872e-6, 10.0, 1.277)),
    ("prv-accountant", "mean of the truncated loss", Setting(0.2757, 70_400, 1.302e-7, 10.0, 8.423)),
    ("prv-accountant", "mean of the truncated loss", Setting(0.1557, 86_050, 1.815e-7, 10.0, 2.819)),
    ("Opacus RDP", "orders end at 63", Setting(0.01, 100, 1e-8, 1.0, 10.0)),
    ("Opacus GDP (no guarantee)", "central limit", Setting(1e-4, 10_000, 1e-6, 1.0, 0.4)),
    ("Opacus PRV", "float64 at a small delta", Setting(1e-5, 1_000_000, 1e-10, 1.0, 0.5)),
    ("dp-accounting RDP", "replace-one as if add-or-remove", Setting(1.0, 16, 1e-6, 1.0, 8.0, "replace")),
)

Answers = Mapping[str, Sequence[Answer]]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def grid() -> list[Setting]:
    """72 settings: every pair of rate and steps with two of the (delta, epsilon), so that each occurs often."""
    return [
        Setting(q, steps, DELTAS[(i + 2 * j + 3 * k) % 4], EPSILONS[(i + j + 3 * k) % 6])
        for i, q in enumerate(RATES)
        for j, steps in enumerate(STEPS)
        for k in range(2)
    ]


def main() -> None:
    from common import heading, publish, table  # loads torch; every worker loads this file

    options = _options()
    # Spread over the grid, for a trial.
    settings = random.Random(0).sample(grid(), options.settings) if options.settings < len(grid()) else grid()
    truth = Truth(max(options.limit, _PATIENCE))
    noise = ask_all("noise", NOISE, settings, options.limit)
    first, first_note = noise_table(settings, noise, truth)
    at = [s._replace(sigma=a.value) for s, a in zip(settings, noise[OURS], strict=True) if a.value is not None]
    epsilon = ask_all("epsilon", EPSILON, at, options.limit)
    second, second_note = epsilon_table(at, epsilon, truth)
    third = trap_table(truth)
    truth.stop()
    publish("accounting", "\n".join([
        heading("Accounting: dpft beside other libraries") + f"- also: {_versions()}",
        f"- {len(settings)} settings; an answer may take {options.limit:g} s and 8 GB\n",
        "## Noise for a target (epsilon, delta)\n", table(*first), first_note,
        f"## Epsilon of the {len(at)} mechanisms that ours found\n", table(*second), second_note,
        "## Known faults\n", table(*third),
    ]), write=options.write)  # fmt: skip


class Truth:
    """Certified bounds on epsilon, without a short time limit; (0, inf) where nothing could be certified."""

    def __init__(self, limit: float) -> None:
        self._worker = Worker(EPSILON[CERTIFIED], limit, EPSILON[CERTIFIED])
        self._known: dict[Setting, tuple[float, float]] = {}

    def at(self, setting: Setting) -> tuple[float, float]:
        """Lower and upper bound, remembered."""
        if setting not in self._known:
            self._known[setting] = self._worker.answer(setting).value or (0.0, math.inf)
        return self._known[setting]

    def stop(self) -> None:
        self._worker.stop()


def ask_all(what: str, asked: Mapping[str, Ask], settings: Sequence[Setting], limit: float) -> dict[str, list[Answer]]:
    """Every library's answer to every setting, the libraries in turn."""
    workers = {name: Worker(ask, limit, EPSILON[name]) for name, ask in asked.items()}
    answers: dict[str, list[Answer]] = {name: [] for name in asked}
    start = time.perf_counter()
    for number, setting in enumerate(settings, start=1):
        for name, worker in workers.items():
            answers[name].append(worker.answer(setting))
        _say(f"{what}: {number} of {len(settings)}, {time.perf_counter() - start:.0f} s")
    for worker in workers.values():
        worker.stop()
    return answers


def noise_table(settings: Sequence[Setting], answers: Answers, truth: Truth) -> tuple[Table, str]:
    """Time, failures, too little noise and too much noise of each library, and a note."""
    _say("noise: certifying what is below ours")
    ours = [answer.value for answer in answers[OURS]]
    at_floor = [s.q < 1 and own is not None and own <= _LEAST_SIGMA for s, own in zip(settings, ours, strict=True)]
    rows = []
    for name, theirs in answers.items():
        unsound, waste = 0, []
        for setting, own, skip, answer in zip(settings, ours, at_floor, theirs, strict=True):
            if answer.value is None:
                continue
            # What has as much noise as ours is as private as ours, and that is certified itself.
            if name == OURS or own is None or answer.value < own:
                lower, _ = truth.at(setting._replace(sigma=answer.value))
                unsound += lower > setting.epsilon * (1 + _SLACK)
            if own is not None and not skip:
                waste.append(answer.value / own)
        rows.append([name, *_times(theirs), str(unsound), *_ratios(waste, max), _failures(theirs)])
    columns = ["library", "solved", "median s", "95 % s", "worst s", "unsound", "sigma / ours, median", "worst",
               "failures"]  # fmt: skip
    note = (
        f"\nIn {sum(at_floor)} of the settings ours stopped at sigma = {_LEAST_SIGMA:g}, the least that it gives where "
        "batches are sampled; the ratios leave them out.\n"
    )
    return (columns, rows), note


def epsilon_table(settings: Sequence[Setting], answers: Answers, truth: Truth) -> tuple[Table, str]:
    """Time, failures, width, and distance from ours of each library's epsilon, and a note."""
    _say("epsilon: certifying what was too slow to be certified")
    pairs = zip(settings, answers[CERTIFIED], strict=True)
    least = [answer.value[0] if answer.value else truth.at(setting)[0] for setting, answer in pairs]
    rows = []
    for name, theirs in answers.items():
        widths, ratios, unsound = [], [], 0
        for own, possible, answer in zip(answers[OURS], least, theirs, strict=True):
            if answer.value is None:
                continue
            lower, upper = answer.value
            if lower > 0:
                widths.append((upper - lower) / upper)
            if own.value and own.value[1] > 0:
                ratios.append(upper / own.value[1])
            unsound += upper < possible * (1 - _SLACK)
        width = f"{statistics.median(widths):.2%} ({max(widths):.2%}) of {len(widths)}" if widths else "no lower bound"
        median, lowest = _ratios(ratios, min)
        highest = _ratios(ratios, max)[1]
        wrong = "-" if name == CERTIFIED else str(unsound)  # it is the measure itself
        rows.append([name, *_times(theirs), wrong, width, median, lowest, highest, _failures(theirs)])
    columns = ["library", "answered", "median s", "95 % s", "worst s", "unsound", "width: median (worst)",
               "upper / ours, median", "lowest", "highest", "failures"]  # fmt: skip
    known = sum(lower > 0 for lower in least)
    return (columns, rows), f"\nA lower bound above 0, so that too small an epsilon shows, in {known} settings.\n"


def trap_table(truth: Truth) -> Table:
    """What a library says where it is known to be wrong, and what is right."""
    rows = []
    for name, fault, setting in TRAPS:
        _say(f"{name}: {fault}")
        worker = Worker(EPSILON[name], _PATIENCE, EPSILON[name])
        answer = worker.answer(setting)
        worker.stop()
        lower, upper = truth.at(setting)
        said = answer.failure
        if answer.value:
            said = " to ".join(f"{bound:.4f}" for bound in answer.value if bound)
        where = f"q={setting.q:g}, sigma={setting.sigma:g}, T={setting.steps:,}, delta={setting.delta:g}"
        right = f"{lower:.4f} to {upper:.4f}" if lower else f"at most {upper:.4f}"
        rows.append([name, fault, where, said, right])
    return ["library", "fault", "setting", "its epsilon", "certified by dpft"], rows


def _times(answers: Sequence[Answer]) -> list[str]:
    good = sorted(answer.seconds for answer in answers if not answer.failure)
    if not good:
        return ["0", "-", "-", "-"]
    high = good[math.ceil(0.95 * len(good)) - 1]
    return [str(len(good)), *(_seconds(time) for time in (statistics.median(good), high, good[-1]))]


def _seconds(value: float) -> str:
    """Two digits.

    >>> _seconds(0.00123), _seconds(12.34)
    ('0.0012', '12')
    """
    return f"{value:.{max(0, 1 - math.floor(math.log10(max(value, 1e-9))))}f}"


def _ratios(ratios: Sequence[float], extreme: Callable[[Sequence[float]], float]) -> tuple[str, str]:
    return (f"{statistics.median(ratios):.4g}", f"{extreme(ratios):.4g}") if ratios else ("-", "-")


def _failures(answers: Sequence[Answer]) -> str:
    kinds = Counter(answer.failure for answer in answers if answer.failure)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"


def _versions() -> str:
    packages = ("dp-accounting", "prv-accountant", "scipy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=len(grid()), help="fewer than all, for a trial")
    parser.add_argument("--limit", type=float, default=6.0, help="seconds that one answer may take")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
