"""The folder of a run: the plan that it stands for, the facts beside the plan, and what is released into it."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpft.adapter import save_model
from dpft.average import post_processing
from dpft.books import DataSetBooks
from dpft.config import Recipe, dump_recipe
from dpft.data import public_id
from dpft.engine.engine import PrivateEngine
from dpft.engine.ordinary import OrdinaryEngine
from dpft.engine.plan import Plan, plan_from
from dpft.errors import InputError, PrivacyError
from dpft.files import read_json, sync_folder, write_atomic, write_json
from dpft.models.build import TaskModel
from dpft.models.source import ModelSource
from dpft.paid_mask import facts_of
from dpft.peft.method import Method
from dpft.peft.registry import method_of
from dpft.per_sample.capture import trainable
from dpft.report.activations import activations_svg
from dpft.report.statement import trained
from dpft.report.write import PICTURE
from dpft.start import Start
from dpft.task import Task, tokenizer_of

RUN = "train"
"""The name of a run's training in its own ledger."""

_NEEDED_BYTES = 200_000_000  # free disk space asked for before a run starts


def promise(recipe: Recipe, folder: Path, resume: bool) -> Plan:
    """Make the plan, and the folder it stands in; on resume, the very plan that the folder was made for."""
    path, text = folder / "run.toml", dump_recipe(recipe)
    if not resume:
        # What a run leaves that stopped before its ledger, at a misspelt target say, is no obstacle.
        if folder.exists() and {path.name for path in folder.iterdir()} - {"run.toml", "private"}:
            raise InputError(f"The folder {folder} is not empty. Choose another --out, or continue it with --resume.")
        made = plan_from(recipe.privacy, recipe.data.unit)
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < _NEEDED_BYTES:
            raise InputError(f"Expected {_NEEDED_BYTES // 10**6} MB of free disk space for {folder}; make room first.")
        write_atomic(path, text.encode())
        return made
    if not path.is_file():
        raise InputError(f"There is no run to resume in {folder}: run.toml is missing. Leave --resume out.")
    if path.read_text() != text:
        raise PrivacyError(
            f"The recipe differs from the one that {folder} was started with (run.toml), so the ledger would no longer "
            "describe what runs. Resume with the same recipe, or start another folder."
        )
    if (folder / "privacy.json").exists():
        raise InputError(f"The run in {folder} is finished; nothing is left to resume.")
    if not (folder / "plan.json").exists():  # stopped before its first step
        return plan_from(recipe.privacy, recipe.data.unit)
    kept = Plan.from_dict(read_json(folder / "plan.json")["plan"])
    if not kept.follows(recipe.privacy):
        raise PrivacyError(f"plan.json in {folder} is not the plan of its recipe. Restore it, or start another folder.")
    return kept


def write_facts(
    folder: Path,
    recipe: Recipe,
    promised: Plan,
    engine: PrivateEngine | OrdinaryEngine,
    source: ModelSource,
    books: DataSetBooks | None,
    start: Start | None,
) -> None:
    """plan.json: the plan, and what else the statement needs. Public figures only."""
    params = trainable(engine.model)
    facts = {
        "name": recipe.name,
        "run": RUN,
        "plan": promised.to_dict(),
        "dataset": public_id(recipe.data),
        "group": recipe.data.group,
        "model": source.public_name + (f" at {source.revision}" if source.revision else ""),
        "trained_parameters": trained(list(params), sum(p.numel() for p in params.values())),
        "noise_source": engine.noise_source,
        "noise_is_private": engine.noise_is_private,
        "enabled": recipe.privacy.enabled,
        "heldout_public": recipe.evaluate.public,
        "data_set_run": books.run if books else None,
        "started_from": dict(start.facts) if start else None,
        "public_records": public_id(recipe.public) if recipe.public else None,
        "post_processing": post_processing(recipe.optimizer),
        "mask": facts_of(recipe, method_of(recipe)),
    }
    write_json(folder / "plan.json", facts)


def release(folder: Path, model: TaskModel, method: Method, recipe: Recipe, source: ModelSource, task: Task) -> None:
    """Write the adapter beside its place and rename it in, so that it is there whole or not at all."""
    part = folder / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    save_model(
        model,
        method,
        part,
        base=source.public_name,
        revision=source.revision,
        task=recipe.data.task,
        labels=recipe.data.labels,
        private=recipe.privacy.enabled,
        tokenizer=tokenizer_of(recipe.model, source).public_name if recipe.model.tokenizer else None,
        drawn=source.drawn,
        inputs=task.inputs(),
    )
    picture = activations_svg(model)
    if picture:
        write_atomic(part / PICTURE, picture)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of a run stopped between here and its report
    part.rename(folder / "adapter")
    sync_folder(folder)
