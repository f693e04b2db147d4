"""Build the three report files of a run's folder from its plan, its ledger and its public metrics."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

from dpft_accounting import Ledger
from dpft_accounting.plots import percent

from dpft.engine.plan import Plan
from dpft.errors import InputError
from dpft.files import read_json, write_atomic, write_json
from dpft.report.page import Samples, page, rendered
from dpft.report.plots import attack_trade_off, epsilon_over_steps
from dpft.report.statement import statement
from dpft.report.templates import HTML, MARKDOWN
from dpft.report.unprotected import write_unprotected

PICTURE = "activations.svg"
"""In adapter/, of a model whose activation functions trained."""


def write_report(folder: Path) -> dict[str, Any]:
    """Write privacy.json, report.md and report.html; returns the statement.

    Reads plan.json, ledger.jsonl, metrics.jsonl, samples.json and a picture in adapter/ only: nothing under
    private/."""
    facts = read_json(folder / "plan.json")
    metrics, samples = _metrics(folder / "metrics.jsonl"), _samples(folder / "samples.json")
    try:
        plan = Plan.from_dict(facts["plan"])
        if not facts.get("enabled", True):
            return write_unprotected(folder, plan, facts, metrics, samples)
        made = statement(plan, facts, Ledger.read(folder / "ledger.jsonl"))
        context = _context(facts["name"], plan, made, metrics) | {"samples": samples}
    except KeyError:
        raise InputError("plan.json is damaged: expected it as dpft run writes it.") from None
    write_json(folder / "privacy.json", made)
    write_atomic(folder / "report.md", rendered(MARKDOWN, context).encode())
    context["plot"] = epsilon_over_steps(plan, made["steps_charged"])
    # Without secret noise there is no curve to show: every attack may succeed. Of a second phase, one phase alone.
    context["attack_plot"] = (
        attack_trade_off(plan, made["steps_charged"], made["epsilon"]["upper"])
        if made["private"] and not made["started_from"]
        else ""
    )
    context["activations"] = _picture(folder / "adapter" / PICTURE)
    write_atomic(folder / "report.html", page(f"Privacy report: {facts['name']}", rendered(HTML, context)).encode())
    return made


def _context(name: str, plan: Plan, made: dict[str, Any], metrics: list[tuple[str, str]]) -> dict[str, Any]:
    own = made["started_from"]["epsilon_of_this_run"] if made["started_from"] else made["epsilon"]
    return {
        "name": name,
        "s": made,
        "own": {"upper": figure(own["upper"]), "lower": figure(own["lower"])},
        "started_from": _started_from(made),
        "eps": figure(made["epsilon"]["upper"]),
        "planned": {"upper": figure(plan.epsilon.upper), "lower": figure(plan.epsilon.lower)},
        "mechanism": _mechanism(plan, made),
        "risk": _risk(made),
        "risk_in_words": _risk_in_words(made),
        "accountants": [
            {
                "method": row["method"].upper(),
                "lower": figure(row["lower"]) if row["lower"] else "none claimed",
                "upper": figure(row["upper"]),
                "flags": "; ".join(row["flags"]),
            }
            for row in made["accountants"]
        ],
        "metrics": metrics,
    }


def _started_from(made: dict[str, Any]) -> str:
    start = made["started_from"]
    if not start:
        return ""
    pruned = ", ".join(f"{name} = {value}" for name, value in (start["pruned"] or {}).items())
    return (
        f"A second phase: training went on from what the run {start['run']} released on the same records"
        + (f", with its frozen weights pruned by that ({pruned}). " if pruned else ". ")
        + f"The epsilon and the attack risk here are those of both together; this run alone has epsilon "
        f"{figure(start['epsilon_of_this_run']['upper'])}, and plan, ledger and mechanism below are its own. The data "
        "set's own ledger holds the sum of all runs."
    )


def _mechanism(plan: Plan, made: dict[str, Any]) -> list[tuple[str, str]]:
    count = made["trained_parameters"]
    return [
        ("sampler", plan.sampler),
        ("sample rate", f"{plan.sample_rate:.6g}"),
        ("expected batch size", f"{plan.expected_batch_size:g}"),
        ("clip", f"{plan.clip:g}, {plan.clipping}"),
        ("noise multiplier", f"{plan.noise_multiplier:.6g}"),
        *([("steps that paid for the mask", str(made["mask_steps"]))] if made["mask_steps"] else []),
        *([("public records looked at first", made["public_records"])] if made["public_records"] else []),
        *([("post-processing", "; ".join(made["post_processing"]))] if made["post_processing"] else []),
        ("trained parameters", f"{count['count']:,} in {count['tensors']} tensors"),
        ("model", made["model"]),
        ("noise source", made["noise_source"]),
    ]


def _risk(made: dict[str, Any]) -> list[tuple[str, str]]:
    risk = made["attack_risk"]
    return [
        ("advantage (true-positive rate minus false-positive rate)", percent(risk["advantage"])),
        *(
            (f"true-positive rate at a false-positive rate of {percent(float(rate))}", percent(value))
            for rate, value in risk["tpr_at_fpr"].items()
        ),
    ]


def _risk_in_words(made: dict[str, Any]) -> str:
    if not made["private"]:
        return "The noise can be drawn again by others, so no attack is ruled out."
    found = percent(made["attack_risk"]["tpr_at_fpr"]["0.01"])
    return (
        f"Whoever knows everything except whether one {made['unit']} was used, and may accuse 1 % of those that were "
        f"not, finds at most {found} of those that were; guessing finds 1 %."
    )


def figure(value: float | str) -> str:
    """An epsilon to four decimals, rounded up; ``inf`` as it is."""
    number = float(value)
    return f"{math.ceil(number * 1e4) / 1e4:.4f}" if math.isfinite(number) else "infinite"


def _picture(path: Path) -> str:
    """The picture as an address that holds all of it: in an <img> nothing of a foreign file can run."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""


def _metrics(path: Path) -> list[tuple[str, str]]:
    """Rows of metrics.jsonl that are results, in order. The file holds public figures only."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [(row["name"], str(row["value"])) for row in rows if "name" in row and "value" in row]


def _samples(path: Path) -> Samples:
    """What the trained model wrote after public prompts."""
    if not path.exists():
        return ()
    return [(str(row["prompt"]), [str(text) for text in row["texts"]]) for row in read_json(path)["samples"]]
