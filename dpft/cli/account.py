"""``dpft account``: what has been, or would be, spent, and what attacks it leaves possible."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dpft_accounting import (
    Certificate,
    Gaussian,
    Ledger,
    Mechanism,
    PoissonGaussian,
    ShuffledGaussian,
    Unit,
    certify,
    mechanism_from_dict,
    profile,
)
from dpft_accounting.plots import (
    allowed,
    delta_over_epsilon,
    epsilon_over_noise,
    epsilon_over_steps,
    percent,
    svg,
    trade_off,
)
from rich.console import Console
from rich.table import Table

from dpft.cli.ledger import delta_of
from dpft.cli.paper import account_paper
from dpft.errors import InputError
from dpft.files import write_atomic
from dpft.report.statement import attack_risk
from dpft.report.write import figure

_SAMPLERS = ("poisson", "shuffled", "full")
_RATES = (0.01, 0.001, 1e-5)
_SHUFFLED = "shuffled batches: no amplification by sampling is claimed, since none is proved"
_WITH_MECHANISM = ("delta", "adjacency", "examples", "plot", "mechanism")


@dataclass(frozen=True)
class Asked:
    """A mechanism as the command line's options give it; None where one was left out."""

    noise_multiplier: float | None = None
    sampler: str | None = None
    sample_rate: float | None = None
    steps: int | None = None
    epochs: int | None = None
    delta: float | None = None
    adjacency: str | None = None
    examples: int | None = None
    plot: Path | None = None
    mechanism: Path | None = None

    def flags(self, *names: str) -> list[str]:
        """The options given, as they are typed; all of them, or those among ``names``."""
        found = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return ["--" + name.replace("_", "-") for name in found if not names or name in names]


def account(ledger: Path | None, paper_name: str | None, asked: Asked, *, as_json: bool) -> None:
    """One of three questions: a ledger, a published table of claims, or a mechanism."""
    if ledger is not None:
        others = [flag for flag in asked.flags() if flag != "--delta"]
        _alone("a ledger", ["--paper"] * (paper_name is not None) + others)
        account_ledger(ledger, asked.delta, as_json=as_json)
    elif paper_name is not None:
        _alone("--paper", asked.flags())
        account_paper(paper_name, as_json=as_json)
    else:
        account_mechanism(asked, as_json=as_json)


def account_mechanism(asked: Asked, *, as_json: bool) -> None:
    """Every accountant's epsilon of one mechanism, side by side, and what attacks can reach."""
    sigma, delta = asked.noise_multiplier, asked.delta
    if delta is None or (sigma is None and asked.mechanism is None):
        raise InputError("Expected --noise-multiplier and --delta, or a ledger, or --paper. Give both.")
    make: Callable[[float], Mechanism] | None = None
    if asked.mechanism is not None:
        mechanism, unit = _described(asked)
    else:
        assert sigma is not None  # asked for above
        make, unit = _mechanism(asked)
        mechanism = make(sigma)
    found = certify(mechanism, unit, delta)
    risk = _risk(mechanism, unit, found.bound.upper, delta)
    remarks = [_SHUFFLED] if isinstance(mechanism, ShuffledGaussian) else []
    written = _plot(asked.plot, found, make, sigma) if asked.plot else []
    if as_json:
        value = found.to_dict() | {"risk": risk} | ({"remarks": remarks} if remarks else {})
        print(json.dumps(value, indent=2, allow_nan=False))
        return
    table = Table("accountant", "lower", "upper", "remarks", box=None, padding=(0, 2, 0, 0))
    for row in found.rows:
        lower = figure(row.lower) if row.lower else "none claimed"
        table.add_row(row.method.upper(), lower, figure(row.upper), "; ".join(row.flags))
    flags = "; ".join([*found.bound.flags, *remarks])
    table.add_row("publish", figure(found.bound.lower), figure(found.bound.upper), flags)
    console = Console()
    console.print(table)
    console.print()
    console.print(_risk_table(risk))
    for path in written:
        console.print(f"plot: {path}", highlight=False, soft_wrap=True)


def _mechanism(asked: Asked) -> tuple[Callable[[float], Mechanism], Unit]:
    """The mechanism as a function of its noise multiplier, and the unit."""
    sampler = asked.sampler
    if sampler is not None and sampler not in _SAMPLERS:
        near = get_close_matches(sampler, _SAMPLERS, 1, 0.5)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise InputError(f"Expected --sampler to be one of {', '.join(_SAMPLERS)}, found {sampler!r:.60}.{hint}")
    if sampler == "shuffled":
        return _shuffled(asked)
    if asked.epochs is not None:
        raise InputError("Expected --steps, found --epochs, which belongs to --sampler shuffled. Give the steps.")
    rate, steps = asked.sample_rate, 1 if asked.steps is None else asked.steps
    if sampler == "full" and rate not in (None, 1):
        raise InputError(f"Expected no --sample-rate with --sampler full, found {rate:g}. Leave one of them out.")
    if sampler == "poisson" and rate is None:
        raise InputError("Expected --sample-rate with --sampler poisson, found none. Give it.")
    unit = _unit(asked, "add_remove")
    if rate is None or rate == 1:
        return (lambda sigma: Gaussian(sigma, steps)), unit
    return (lambda sigma: PoissonGaussian(rate, sigma, steps)), unit


def _shuffled(asked: Asked) -> tuple[Callable[[float], Mechanism], Unit]:
    epochs = asked.epochs
    for flag in asked.flags("steps", "sample_rate"):
        raise InputError(f"Expected --epochs with --sampler shuffled, found {flag}. Give the passes over the records.")
    if epochs is None:
        raise InputError("Expected --epochs with --sampler shuffled, found none. Give the passes over the records.")
    if asked.examples is None:
        raise InputError(
            "Expected --examples with --sampler shuffled, where the number of records must be public. Give it."
        )
    return (lambda sigma: ShuffledGaussian(epochs, sigma)), _unit(asked, "zero_out")


def _unit(asked: Asked, adjacency: str) -> Unit:
    chosen = {"name": "example", "adjacency": asked.adjacency or adjacency, "n_public": asked.examples}
    return Unit.from_dict(chosen)


def _risk(mechanism: Mechanism, unit: Unit, epsilon: float, delta: float) -> dict[str, Any]:
    """Attack risk as JSON; ``epsilon_delta_alone`` is what the published pair by itself would allow."""
    risk = attack_risk(mechanism, unit, _RATES)
    # Where the pair's two lines cross: the largest TPR - FPR it allows.
    advantage = 1.0 if epsilon > 700 else (math.expm1(epsilon) + 2 * delta) / (math.exp(epsilon) + 1)
    alone = {
        "advantage": advantage,
        "balanced_accuracy": (1 + advantage) / 2,
        "tpr_at_fpr": {f"{rate:g}": allowed(rate, epsilon, delta) for rate in _RATES},
    }
    return {
        **risk,
        "balanced_accuracy": (1 + risk["advantage"]) / 2,
        "epsilon_delta_alone": alone,
        "covers": f"any membership attack on one {unit.name}",
    }


def _risk_table(risk: dict[str, Any]) -> Table:
    table = Table(
        "membership attacks, at most", "this mechanism", "(epsilon, delta) alone", box=None, padding=(0, 2, 0, 0)
    )
    alone = risk["epsilon_delta_alone"]
    for key, name in (("advantage", "advantage (TPR - FPR)"), ("balanced_accuracy", "balanced accuracy")):
        table.add_row(name, percent(risk[key]), percent(alone[key]))
    for rate, value in risk["tpr_at_fpr"].items():
        table.add_row(f"TPR at FPR {percent(float(rate))}", percent(value), percent(alone["tpr_at_fpr"][rate]))
    return table


def _described(asked: Asked) -> tuple[Mechanism, Unit]:
    """The mechanism that a JSON file describes, in the form that ledgers hold."""
    assert asked.mechanism is not None  # the caller has looked
    _alone("--mechanism", [flag for flag in asked.flags() if flag[2:].replace("-", "_") not in _WITH_MECHANISM])
    try:
        described = json.loads(asked.mechanism.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Expected --mechanism to be a JSON file, found {asked.mechanism}: {error.strerror}."
        ) from None
    except (ValueError, RecursionError):
        raise InputError(
            f"Expected --mechanism to be a JSON file; {asked.mechanism} is not. Write one object."
        ) from None
    return mechanism_from_dict(described), _unit(asked, "zero_out" if asked.examples else "add_remove")


def _plot(
    folder: Path, found: Certificate, make: Callable[[float], Mechanism] | None, sigma: float | None
) -> list[Path]:
    """Write the figures into ``folder``, made if it is missing; their paths. Without ``make`` two of the four."""
    if folder.suffix == ".svg" or (folder.exists() and not folder.is_dir()):
        raise InputError(f"Expected --plot to be a folder for the figures, found the file {folder}. Name a folder.")
    mechanism, unit, delta = found.mechanism, found.unit, found.delta
    shape = profile(mechanism, unit)
    figures = {
        "delta-epsilon": delta_over_epsilon(shape, delta),
        "trade-off": trade_off(shape, (found.bound.upper, delta)),
    }
    if make is not None and sigma is not None:
        figures["epsilon-steps"] = epsilon_over_steps(mechanism, unit, delta)
        figures["epsilon-noise"] = epsilon_over_noise(make, unit, delta, around=sigma)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, made in figures.items():
            write_atomic(folder / f"{name}.svg", (svg(made) + "\n").encode())
    except OSError as error:
        raise InputError(f"Expected --plot to be a folder to write into, found {folder}: {error.strerror}.") from None
    return [folder / f"{name}.svg" for name in sorted(figures)]


def account_ledger(path: Path, delta: float | None, *, as_json: bool) -> None:
    """Epsilon that a ledger has been charged in all."""
    ledger = Ledger.read(path)
    at = delta_of(ledger, delta)
    spent = ledger.spent(at)
    if as_json:
        print(json.dumps({"delta": at, "epsilon": spent.to_dict()}, indent=2, allow_nan=False))
    else:
        remarks = "".join(f"; {flag}" for flag in spent.flags)
        print(f"epsilon {figure(spent.upper)} at delta {at:g} ({spent.method}{remarks})")


def _alone(what: str, others: Sequence[str]) -> None:
    for flag in others:
        raise InputError(f"Expected {what} or {flag}, found both. Give one of them.")
