"""A second private phase: training goes on from what an earlier run released, with pruned frozen weights if asked.

Where it starts is post-processing of an earlier private result, and so are the masks, which are computed from it and
from the public base alone. But the records are the same, so both phases spend: the data set's own ledger has to hold
the first before the second may begin, and the statement of the second is about both together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpft_accounting import Ledger, Mechanism, mechanism_from_dict

from dpft.adapter import fill
from dpft.config import Recipe
from dpft.config.start_section import StartSection
from dpft.config.task_fields import LANGUAGE_TASKS
from dpft.engine.plan import Plan
from dpft.errors import InputError, PrivacyError
from dpft.files import read_json
from dpft.models.build import TaskModel
from dpft.models.source import ModelSource
from dpft.peft.dsee import DSEE
from dpft.peft.method import Method
from dpft.peft.prune import Pruning, hold, masks
from dpft.peft.registry import method_of, section_of


@dataclass(frozen=True)
class Start:
    """An earlier run that may be gone on from. ``facts`` is what the statement says of it: public."""

    adapter: Path
    section: StartSection
    meta: Mapping[str, Any]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, plan: Plan, folder: Path) -> Start | None:
        """Where ``recipe`` starts, None for a first phase. Before anything is loaded; ``folder`` is this run's.

        Errors: :class:`InputError` for a run that is not finished or trains something else; :class:`PrivacyError`
        for one that is not private or not in the data set's ledger, and, on resuming, for one that has changed."""
        if recipe.start is None or recipe.ledger is None:
            return None
        run = Path(recipe.start.run)
        if not (run / "privacy.json").is_file() or not (run / "adapter" / "dpft.json").is_file():
            raise InputError(f"Expected start.run={recipe.start.run!r} to be a finished run's folder; check the path.")
        meta, before = read_json(run / "adapter" / "dpft.json"), read_json(run / "plan.json")
        try:
            _same_training(recipe, meta)
            mechanisms = _spent_before(before, plan, recipe)
        except (KeyError, TypeError):
            raise InputError(
                f"dpft.json or plan.json in {run} is damaged: expected them as dpft writes them."
            ) from None
        pruned = recipe.start.model_dump(exclude={"run"}, exclude_none=True) if recipe.start.prunes else None
        facts = {
            "run": before["data_set_run"],
            "adapter_sha256": _digest(run / "adapter"),
            "pruned": pruned,
            "mechanisms": [mechanism.to_dict() for mechanism in mechanisms],
        }
        _unchanged(folder / "plan.json", facts)
        return cls(run / "adapter", recipe.start, meta, facts)

    def apply(self, model: TaskModel, method: Method, source: ModelSource) -> Method:
        """Put the earlier run's values, and the masks, into a freshly attached ``model``; the method that it now has.

        Raises :class:`InputError` for another base model, and a pruning that the model has no place for."""
        trained_on, here = (self.meta["base"], self.meta["revision"]), (source.public_name, source.revision)
        if trained_on != here:
            raise InputError(
                f"start.run was trained on {trained_on[0]} at revision {trained_on[1]}, found {here[0]} at {here[1]}; "
                "give the same in model.source and model.revision."
            )
        fill(model, method, self.adapter, self.meta)
        if not self.section.prunes:
            return method
        if not isinstance(method, DSEE):
            raise InputError(f"Only dsee keeps masks with its adapter, not {method.name}; leave start.prune out.")
        pruning = Pruning(self.section.prune, self.section.heads, self.section.scope)
        hold(model.encoder, masks(model.encoder, pruning))
        return replace(method, pruned=True)


def _same_training(recipe: Recipe, meta: Mapping[str, Any]) -> None:
    """The second phase trains what the first one did: anything else would not fit, or not mean the same."""
    language = recipe.data.task in LANGUAGE_TASKS
    here = {
        "task": recipe.data.task,
        "labels": list(recipe.data.labels),
        "pooling": None if language else recipe.model.pooling,
        "feature_norm": recipe.model.feature_norm,
        "method": section_of(method_of(recipe).stored),
    }
    known = {"task": "classification", **meta}  # an adapter of before there were tasks
    odd = next((key for key, value in here.items() if known[key] != value), None)
    if odd is not None:
        raise InputError(
            f"start.run was trained with {odd} = {meta[odd]}, this recipe has {here[odd]}; make them the same."
        )


def _spent_before(before: Mapping[str, Any], plan: Plan, recipe: Recipe) -> list[Mechanism]:
    """What was run on the records up to here: the earlier run's mechanism, after those that it went on from itself."""
    assert recipe.ledger is not None  # asked for with start
    earlier, books = Plan.from_dict(before["plan"]), Ledger.read(recipe.ledger.file)
    if not before["noise_is_private"]:
        raise PrivacyError("start.run is NOT PRIVATE, and so would be what is trained from it. Start from another run.")
    if (earlier.unit.name, earlier.unit.adjacency) != (plan.unit.name, plan.unit.adjacency):
        raise PrivacyError(
            f"start.run protects each {earlier.unit.name} under {earlier.unit.adjacency}, this plan each "
            f"{plan.unit.name} under {plan.unit.adjacency}; their losses can't be added up. Make them the same."
        )
    if before.get("group") != recipe.data.group:
        raise PrivacyError(
            f"start.run had data.group={before.get('group')}, this recipe has {recipe.data.group}: what one "
            f"{plan.unit.name} is differs, and their losses can't be added up. Make them the same."
        )
    charged = books.runs().get(before["data_set_run"] or "")
    if charged is None or charged.mech != earlier.mechanism or charged.committed < earlier.steps:
        raise PrivacyError(
            f"start.run is not in the books of {recipe.ledger.file}, so they would say about half of what was spent on "
            "these records. Name the same [ledger] in both phases, and run the first one again."
        )
    chain = (before.get("started_from") or {}).get("mechanisms", [])
    return [*(mechanism_from_dict(m) for m in chain), earlier.mechanism]


def _digest(adapter: Path) -> str:
    """Of all that is taken from the earlier run."""
    found = hashlib.sha256()
    for name in ("adapter_model.safetensors", "head.safetensors"):
        if name == "head.safetensors" and not (adapter / name).exists():
            continue  # a language model got none
        try:
            found.update(hashlib.sha256((adapter / name).read_bytes()).digest())
        except OSError:
            raise InputError(f"{name} is missing in {adapter}; expected an adapter as dpft run writes it.") from None
    return found.hexdigest()


def _unchanged(path: Path, facts: Mapping[str, Any]) -> None:
    if path.exists() and read_json(path).get("started_from") != facts:
        raise PrivacyError(
            "start.run changed since this run began, which has trained from it. Restore it, or start anew."
        )
