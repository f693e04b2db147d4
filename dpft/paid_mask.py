"""A mask that a run pays for: ``method.mask_steps`` of the plan's steps come before training and update nothing.

They stand in the run's ledger under the name "mask". Their sums are noised, so they may be kept; a run that was stopped
among them goes on where it was, and steps whose gradient was lost stay charged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dpft.books import DataSetBooks
from dpft.config import Recipe
from dpft.data import public_id
from dpft.data.fingerprint import same_records
from dpft.data.units import by_unit
from dpft.engine.checkpoint import Checkpoints
from dpft.engine.mask_release import RUN, MaskEngine, plan_of_training
from dpft.engine.plan import Plan
from dpft.errors import TrainingError
from dpft.models.build import TaskModel
from dpft.peft.method import Method
from dpft.peft.registry import method_of
from dpft.peft.sparse_adapter import SparseAdapter
from dpft.public import drawn_head_loss, keep, take_kept
from dpft.task import Task


def mask_steps(recipe: Recipe, method: Method) -> int:
    """How many steps the run pays for a mask; none in a second phase, which goes on with the first one's."""
    return method.mask_steps if isinstance(method, SparseAdapter) and recipe.start is None else 0


def check_mask_steps(recipe: Recipe, plan: Plan) -> None:
    """Before anything is loaded: :class:`InputError` for a mask that leaves no step to train."""
    steps = mask_steps(recipe, method_of(recipe))
    if steps:
        plan_of_training(plan, steps)


def facts_of(recipe: Recipe, method: Method) -> dict[str, Any] | None:
    """What plan.json says of it."""
    steps = mask_steps(recipe, method)
    return {"run": RUN, "steps": steps} if steps else None


def choose_mask(
    model: TaskModel,
    method: Method,
    recipe: Recipe,
    plan: Plan,
    task: Task,
    folder: Path,
    compute: torch.dtype,
    books: DataSetBooks | None,
    *,
    resume: bool,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Plan:
    """Pay for the mask of ``method`` in ``model``, or put back the one that was; the plan of the training that is left.

    The order is that of ``dpft/run.py``: preflight, the data set's own ledger, the records. Without ``mask_steps``
    this is the whole plan."""
    if not isinstance(method, SparseAdapter) or not mask_steps(recipe, method):
        return plan
    if resume and take_kept(model, method, folder / "private"):
        return plan_of_training(plan, method.mask_steps)
    engine = MaskEngine(
        model,
        method,
        plan,
        loss=drawn_head_loss(model, task.loss, recipe.seed),
        ledger=folder / "ledger.jsonl",
        dataset=public_id(recipe.data),
        resume=resume,
        token_budget=recipe.train.token_budget,
        compute=compute,
    )
    with engine:
        say("preflight of the mask: every gradient against one example at a time")
        engine.preflight(task.synthetic())
        if books:
            books.charge()
        say(f"choosing the mask by {method.mask_steps} private steps")
        records = task.load().train
        same_records(folder / "private" / "fingerprint.json", records, resume)
        _draw(
            engine,
            by_unit(records, task.examples(records, folder / "private")),
            task,
            Checkpoints(folder / "private" / "mask"),
            resume,
            stop,
        )
    rest = engine.choose()
    keep(model, method, folder / "private")
    return rest


def _draw(
    engine: MaskEngine,
    examples: Sequence[Any],
    task: Task,
    checkpoints: Checkpoints,
    resume: bool,
    stop: Callable[[], bool],
) -> None:
    if resume:
        checkpoints.restore(engine.model, engine.optimizer)
    if engine.steps_charged == engine.plan.steps:
        return
    for batch in engine.batches(examples, task.collate, length=task.length):
        engine.step(batch)
        checkpoints.save(engine.model, engine.optimizer, engine.steps_charged)
        engine.commit()
        if stop():
            raise TrainingError("Stopped while the mask was being chosen; continue with --resume.")
