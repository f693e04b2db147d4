"""The privacy statement: every figure comes from the plan and the ledger, and can be recomputed from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dpft_accounting import (
    Bound,
    Ledger,
    Mechanism,
    Sequential,
    Unit,
    Unsupported,
    certify,
    mechanism_from_dict,
    profile,
)

from dpft import __version__
from dpft.engine.plan import Plan
from dpft.errors import InputError, PrivacyError

RISK_RATES = (0.01, 0.001)  # false-positive rates at which an attack's success is stated

_ADJACENCY = {
    "zero_out": "one {unit} replaced by an empty one that contributes nothing; the number of records is public",
    "add_remove": "one {unit} added or removed; the number of records is secret",
    "replace": "one {unit} replaced by any other; the number of records is public",
}


def trained(names: Sequence[str], count: int) -> dict[str, Any]:
    """What trains: how many tensors and coordinates, and a hash of the sorted names."""
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    return {"tensors": len(names), "count": count, "names_sha256": digest}


def adjacency_in_words(plan: Plan, group: str | None = None) -> str:
    """The neighbouring relation as a reader understands it. ``group``: the column whose values tell units apart."""
    belongs = f", with all rows that have its value in the column {group}," if group else ""
    return _ADJACENCY[plan.unit.adjacency].format(unit=plan.unit.name + belongs)


def not_covered(
    plan: Plan, *, heldout_public: bool, data_set_run: str | None = None, public_records: str | None = None
) -> list[str]:
    """What the guarantee does not speak of, in words. ``data_set_run``: this run's name in the data set's ledger;
    ``public_records``: those that the method looked at before it trained."""
    elsewhere = (
        f"counted in the data set's own ledger, where this run is {data_set_run}"
        if data_set_run
        else "not in this ledger"
    )
    items = [
        f"records that belong together: each {plan.unit.name} is protected by itself; somebody with k of them has "
        "k times the epsilon, and a delta of about k exp((k-1) epsilon) delta",
        "choosing settings: other runs on the same records (tuning, other seeds) add to what is spent and are "
        f"{elsewhere}",
        "how long a step takes, and the memory of the machine while it trains",
        "the pretrained weights, which are taken as public",
        "everything under private/ (losses, norms, checkpoints), which must not leave",
    ]
    held = (
        "held-out records: the recipe declares them public, and their accuracy is published without noise"
        if heldout_public
        else "held-out records: their accuracy stays under private/ because it was computed without noise"
    )
    if public_records:
        items.append(
            f"the records of {public_records}: the recipe declares them public, and the method took from them, without "
            "noise, where its training starts"
        )
    return [*items, held]


def statement(plan: Plan, facts: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """The contents of privacy.json. ``facts`` is what the run wrote beside its plan.

    Raises :class:`PrivacyError` where plan and ledger do not speak of the same mechanism, unit and budget."""
    if (ledger.unit, ledger.budget) != (plan.unit, plan.budget):
        raise PrivacyError(
            "The ledger was opened for another unit or budget than the plan's; nothing can be certified."
        )
    charged, mask = _charged(plan, facts, ledger), facts.get("mask")
    alone, private = spent_bound(plan, charged, ledger), bool(facts["noise_is_private"])
    mechanism, start = plan.mechanism.with_steps(charged), facts.get("started_from")
    if start:  # what leaves depends on both phases, so what is said of it is about both
        mechanism = Sequential([*map(mechanism_from_dict, start["mechanisms"]), mechanism])
    spent = certify(mechanism, plan.unit, plan.delta).bound if start else alone
    return {
        "private": private,
        "unit": plan.unit.name,
        "adjacency": plan.unit.adjacency,
        "adjacency_in_words": adjacency_in_words(plan, facts.get("group")),
        "group": facts.get("group"),
        "epsilon": {"lower": spent.lower, "upper": spent.upper if private else "inf"},
        "epsilon_planned": plan.epsilon.upper,
        "delta": plan.delta,
        "attack_risk": {
            **(attack_risk(mechanism, plan.unit) if private else _NO_BOUND),
            "covers": f"any membership attack on one {plan.unit.name}",
        },
        "noise_multiplier": plan.noise_multiplier,
        "clip": plan.clip,
        "clipping": plan.clipping,
        "sampler": plan.sampler,
        "sample_rate": plan.sample_rate,
        "expected_batch_size": plan.expected_batch_size,
        "steps_planned": plan.steps,
        "steps_charged": charged,
        "trained_parameters": facts["trained_parameters"],
        "accountant": {"name": spent.method, "versions": dict(spent.versions), "flags": list(spent.flags)},
        "accountants": plan.certificate["rows"],
        "noise_source": facts["noise_source"],
        "dataset": facts["dataset"],
        "model": facts["model"],
        "released": ("the mask, the gradients that it was chosen by, " if mask else "")
        + "the trained parameters after every step, and everything computed from them",
        "post_processing": list(facts.get("post_processing", [])),
        "not_covered": not_covered(
            plan,
            heldout_public=bool(facts["heldout_public"]),
            data_set_run=facts.get("data_set_run"),
            public_records=facts.get("public_records"),
        ),
        "data_set_run": facts.get("data_set_run"),
        "public_records": facts.get("public_records"),
        "mask_steps": mask["steps"] if mask else 0,
        "started_from": start and {**start, "epsilon_of_this_run": {"lower": alone.lower, "upper": alone.upper}},
        "dpft_version": __version__,
    }


def _charged(plan: Plan, facts: Mapping[str, Any], ledger: Ledger) -> int:
    """Steps charged, those that paid for a mask among them: two runs of one mechanism, whose steps are the plan's."""
    mask, runs = facts.get("mask"), ledger.runs()
    planned = {facts["run"]: plan.steps - (mask["steps"] if mask else 0)}
    if mask:
        planned[mask["run"]] = mask["steps"]
    for name, steps in planned.items():
        if name not in runs:
            raise InputError(f"The ledger holds no run {name!r}; expected the ledger of this run.")
        if runs[name].mech != plan.mechanism.with_steps(steps):
            raise PrivacyError(
                "The ledger was charged for another mechanism than the plan's; nothing can be certified."
            )
    return sum(max(runs[name].reserved, runs[name].committed) for name in planned)


def spent_bound(plan: Plan, charged: int, ledger: Ledger) -> Bound:
    """Epsilon of the steps charged: the plan's certified bound when all of them are, else the ledger's own."""
    return plan.epsilon if charged == plan.steps else ledger.spent(plan.delta)


def attack_risk(mechanism: Mechanism, unit: Unit, rates: Sequence[float] = RISK_RATES) -> dict[str, Any]:
    """The most that any membership attack can reach: TPR - FPR, and the TPR at each false-positive rate of ``rates``.

    Upper bounds from the whole privacy profile, whatever delta is; 1 where the loss is too large for any."""
    found = profile(mechanism, unit)
    try:
        return _risk(found.advantage(), {rate: found.tpr(rate) for rate in rates})
    except Unsupported:
        return _risk(1.0, dict.fromkeys(rates, 1.0))


def _risk(advantage: float, tpr: Mapping[float, float]) -> dict[str, Any]:
    return {"advantage": advantage, "tpr_at_fpr": {f"{rate:g}": value for rate, value in tpr.items()}}


_NO_BOUND = _risk(1.0, dict.fromkeys(RISK_RATES, 1.0))
