"""The whole main job, top to bottom: recipe, plan, model, preflight, data, training, report. Read this first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dpft.average import Average
from dpft.books import DataSetBooks
from dpft.cache.task import CachedTask
from dpft.config import Recipe
from dpft.data import public_id
from dpft.data.fingerprint import same_records
from dpft.data.units import by_unit
from dpft.declared import check_not_declared
from dpft.engine.checkpoint import Checkpoints
from dpft.engine.engine import PrivateEngine
from dpft.engine.ordinary import OrdinaryEngine
from dpft.engine.plan import Plan
from dpft.engine.scaling import PrivatisedScale
from dpft.errors import TrainingError
from dpft.files import private_folder
from dpft.heldout import Heldout
from dpft.journal import private_stats
from dpft.metrics import check_metrics
from dpft.models.build import TaskModel, task_model
from dpft.models.can_write import check_writing
from dpft.models.held import hold_frozen
from dpft.models.precision import attention_for, compute_dtype
from dpft.models.recompute import recompute
from dpft.models.source import ModelSource, pinned, resolve
from dpft.paid_mask import check_mask_steps, choose_mask
from dpft.peft.method import Method
from dpft.peft.registry import method_of
from dpft.peft.soft_prompt import check_room, cost
from dpft.per_sample.capture import trainable
from dpft.public import attach_informed, check_public
from dpft.report.write import write_report
from dpft.run_folder import RUN, promise, release, write_facts
from dpft.schedule import build_optimizer, build_scale, set_rates
from dpft.start import Start
from dpft.task import Task, task_of, tokenizer_of


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say. ``scores`` are those on held-out records, where these are public; else empty."""

    folder: Path
    plan: Plan
    statement: dict[str, Any]
    scores: Mapping[str, float | str]
    heldout_records: int | None


@dataclass
class Watch:
    """How a run reports progress and is asked to stop. Both see public things only."""

    say: Callable[[str], None] = lambda _: None
    planned: Callable[[Plan], None] = lambda _: None
    step: Callable[[int, int], None] = lambda _done, _of: None
    stop: Callable[[], bool] = lambda: False


def run(recipe: Recipe, folder: Path, *, resume: bool = False, watch: Watch | None = None) -> Outcome:
    """Train privately as ``recipe`` says, into ``folder``.

    Order matters: plan and preflight come before any record is read, the ledgers before any noise, and nothing
    is put into ``folder/adapter`` before the last check has passed."""
    watch = watch or Watch()
    check_public(recipe)
    check_not_declared(recipe)
    promised = promise(recipe, folder, resume)
    check_mask_steps(recipe, promised)
    books = DataSetBooks(recipe.ledger, promised, folder, recipe.name) if recipe.ledger else None
    if books:
        books.check()
    start = Start.of(recipe, promised, folder)
    watch.planned(promised)
    source = resolve(recipe.model.source, recipe.model.revision, seed=recipe.seed)
    watch.say(f"loading {source.public_name}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute = compute_dtype(recipe.train.precision, device)
    if recipe.public:
        watch.say(f"looking at the public records {public_id(recipe.public)}")
    model, method = build_model(recipe, source, attention_for(compute, device), folder / "private", resume)
    if start:
        method = start.apply(model, method, source)
    hold_frozen(model, compute)
    if recipe.train.recompute:
        recompute(model.encoder)
    model.to(device)
    source = pinned(source, model.encoder)
    task = task_of(recipe.data, tokenizer_of(recipe.model, source), model, recipe.train.label_smoothing)
    check_generate(recipe, model)
    private = private_folder(folder / "private")
    rest = choose_mask(
        model, method, recipe, promised, task, folder, compute, books, resume=resume, say=watch.say, stop=watch.stop
    )
    noised = rest if recipe.privacy.enabled else replace(rest, noise_multiplier=0.0)
    optimizer = build_optimizer(recipe.optimizer, model, model.head, noised)
    scale = build_scale(recipe.optimizer, model, noised)
    average = Average(recipe.optimizer, trainable(model), rest.steps)
    cache = _cached(recipe, task, model, private / "cache", compute) if recipe.cache else None
    training = cache or task
    with _engine(recipe, model, optimizer, rest, task, folder, compute, resume, scale) as engine:
        write_facts(folder, recipe, promised, engine, source, books, start)
        if recipe.privacy.enabled:
            watch.say("preflight: every gradient against one example at a time")
        engine.preflight(training.synthetic())
        if books:
            books.charge()
        watch.say("reading the records")
        data = task.load()
        same_records(private / "fingerprint.json", data.train, resume or rest is not promised)
        examples = cache.examples(data.train, private, watch.say) if cache else task.examples(data.train, private)
        records = by_unit(data.train, examples)
        checkpoints = Checkpoints(private, {**average.tensors, **(scale.tensors if scale else {})})
        heldout = Heldout(recipe, task, data.heldout, compute)
        del data  # their text need not lie in memory while they train
        before = heldout.before(model, watch.say)
        if resume:
            _restore(checkpoints, engine, watch)
        _train(recipe, engine, records, training, checkpoints, average, watch)
        average.apply()
        model.eval()
        found = {**heldout.after(model, watch.say), **before}  # the result first: it heads the report
    if books:
        books.confirm()
    heldout.record(folder, found)
    heldout.samples(folder, model)
    release(folder, model, method, recipe, source, task)
    made = write_report(folder)
    if cache:
        cache.finish()
    public = recipe.evaluate.public
    return Outcome(folder, promised, made, found if public else {}, len(heldout) if public else None)


def build_model(
    recipe: Recipe,
    source: ModelSource,
    attention: str | None = None,
    private: Path | None = None,
    resume: bool = False,
) -> tuple[TaskModel, Method]:
    """The task's model with its method in place; the rest frozen and in eval mode unless dropout is asked for.

    A new head trains with every method, since it starts at zero. ``private`` is where a run keeps what its method took
    from public records, and finds it on ``resume``."""
    method = method_of(recipe)
    model = task_model(
        recipe.data.task,
        source,
        outputs=recipe.data.outputs,
        pooling=recipe.model.pooling,
        feature_norm=recipe.model.feature_norm,
        attention=attention,
    )
    attach_informed(model, method, recipe, source, private, resume)
    check_room(model, recipe.data.tokens)
    return model.train(recipe.model.dropout), method


def check_generate(recipe: Recipe, model: TaskModel) -> None:
    """Before any record is read: can the model write what [generate] asks for, and can that be scored?"""
    if recipe.generate is not None:
        check_metrics(recipe.generate.metrics)
        check_writing(model.encoder, recipe.data.max_length, recipe.generate)


def _engine(
    recipe: Recipe,
    model: TaskModel,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    task: Task,
    folder: Path,
    compute: torch.dtype,
    resume: bool,
    scale: PrivatisedScale | None,
) -> PrivateEngine | OrdinaryEngine:
    """The private engine; or, where the recipe says so in as many words, the one without privacy."""
    if not recipe.privacy.enabled:
        budget = recipe.train.tokens
        return OrdinaryEngine(model, optimizer, plan, loss=task.loss, token_budget=budget, compute=compute)
    return PrivateEngine(
        model,
        optimizer,
        plan,
        loss=task.loss,
        ledger=folder / "ledger.jsonl",
        dataset=public_id(recipe.data),
        run=RUN,
        resume=resume,
        token_budget=recipe.train.token_budget,
        compute=compute,
        scale=scale,
        on_step=private_stats(folder / "private" / "steps.jsonl"),
    )


def _cached(recipe: Recipe, task: Task, model: TaskModel, folder: Path, compute: torch.dtype) -> CachedTask:
    """The same task, whose training batches bring what the frozen part of ``model`` computes of them."""
    assert recipe.cache is not None  # the caller asks
    return CachedTask(recipe.cache, task, model, task.loss, folder, compute, recipe.train.tokens)


def _restore(checkpoints: Checkpoints, engine: PrivateEngine | OrdinaryEngine, watch: Watch) -> None:
    at, remark = checkpoints.restore(engine.model, engine.optimizer)
    if remark:
        watch.say(remark)
    if isinstance(engine, OrdinaryEngine):
        engine.restored(at)
        return
    if at == 0 and engine.steps_charged >= engine.plan.steps:
        raise TrainingError(
            "Every planned step is charged and no checkpoint is left, so there is nothing trained to release. "
            "Start a new run, with train.checkpoint_every set."
        )
    watch.say(f"resuming from the checkpoint at {at} charged steps; later ones stay charged")


def _train(
    recipe: Recipe,
    engine: PrivateEngine | OrdinaryEngine,
    examples: Sequence[Any],
    task: Task,
    checkpoints: Checkpoints,
    average: Average,
    watch: Watch,
) -> None:
    """Every step that is still allowed. Interruption ends after a whole step, with a checkpoint."""
    steps, every = engine.plan.steps, recipe.train.checkpoint_every
    if engine.steps_charged >= steps:
        engine.finish()
        return
    for batch in engine.batches(examples, task.collate, length=cost(engine.model, task.length)):
        done = engine.steps_charged
        set_rates(engine.optimizer, recipe.optimizer, done - 1, steps)
        engine.step(batch)
        average.update(done)
        watch.step(done, steps)
        stopping = watch.stop()
        if stopping or (every and done % every == 0) or done == steps:
            checkpoints.save(engine.model, engine.optimizer, done)
            engine.commit()
        if stopping and done < steps:
            raise TrainingError(f"Stopped after step {done} of {steps}, with a checkpoint; continue with --resume.")
