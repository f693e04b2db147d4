"""The whole main job, top to bottom: recipe, plan, model, preflight, data, training, report. Read this first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpft.adapter import save_classifier
from dpft.average import Average, post_processing
from dpft.books import DataSetBooks
from dpft.cache.task import CachedTask
from dpft.config import Recipe, dump_recipe
from dpft.data import public_id
from dpft.data.fingerprint import same_records
from dpft.engine.checkpoint import Checkpoints
from dpft.engine.engine import PrivateEngine
from dpft.engine.plan import Plan, plan_from
from dpft.errors import InputError, PrivacyError, TrainingError
from dpft.evaluate import accuracy
from dpft.files import private_folder, read_json, sync_folder, write_atomic, write_json
from dpft.journal import private_stats
from dpft.models.classifier import Classifier, classifier
from dpft.models.losses import classification_loss
from dpft.models.precision import attention_for, compute_dtype
from dpft.models.source import ModelSource, load_encoder, pinned, resolve
from dpft.paid_mask import check_mask_steps, choose_mask, facts_of
from dpft.peft.method import Method
from dpft.peft.registry import method_of
from dpft.peft.soft_prompt import check_room, cost
from dpft.per_sample.capture import trainable
from dpft.public import attach_informed, check_public
from dpft.report.activations import activations_svg
from dpft.report.statement import trained
from dpft.report.write import PICTURE, write_report
from dpft.schedule import build_optimizer, build_scale, set_rates
from dpft.start import Start
from dpft.task import Task, task_of

RUN = "train"
_NEEDED_BYTES = 200_000_000  # free disk space asked for before a run starts


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say. ``heldout_accuracy`` is None unless the held-out records are public."""

    folder: Path
    plan: Plan
    statement: dict[str, Any]
    heldout_accuracy: float | None
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
    promised = _promise(recipe, folder, resume)
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
    model.to(device)
    source = pinned(source, model.encoder)
    task = task_of(recipe.data, source, model)
    private = private_folder(folder / "private")
    rest = choose_mask(
        model, method, recipe, promised, task, folder, compute, books, resume=resume, say=watch.say, stop=watch.stop
    )
    optimizer = build_optimizer(recipe.optimizer, model, model.head, rest)
    scale = build_scale(recipe.optimizer, model, rest)
    average = Average(recipe.optimizer, trainable(model), rest.steps)
    cache = _cached(recipe, task, model, private / "cache", compute) if recipe.cache else None
    training = cache or task
    with PrivateEngine(
        model,
        optimizer,
        rest,
        loss=classification_loss,
        ledger=folder / "ledger.jsonl",
        dataset=public_id(recipe.data),
        run=RUN,
        resume=resume,
        token_budget=recipe.train.token_budget,
        compute=compute,
        scale=scale,
        on_step=private_stats(private / "steps.jsonl"),
    ) as engine:
        _write_facts(folder, recipe, promised, engine, source, books, start)
        watch.say("preflight: every gradient against one example at a time")
        engine.preflight(training.synthetic())
        if books:
            books.charge()
        watch.say("reading the records")
        data = task.load()
        same_records(private / "fingerprint.json", data.train, resume or rest is not promised)
        examples = cache.examples(data.train, watch.say) if cache else task.examples(data.train)
        checkpoints = Checkpoints(private, {**average.tensors, **(scale.tensors if scale else {})})
        if resume:
            _restore(checkpoints, engine, watch)
        _train(recipe, engine, examples, training, checkpoints, average, watch)
        average.apply()
        model.eval()
        heldout = task.examples(data.heldout)
        budget = recipe.train.token_budget
        score = accuracy(model, heldout, task.collate, budget, compute, cost(model, task.length)) if heldout else None
    if books:
        books.confirm()
    public = recipe.evaluate.public
    _record_score(folder, score, len(heldout), public=public)
    _release(folder, model, method, recipe, source, task)
    made = write_report(folder)
    if cache:
        cache.finish()
    return Outcome(folder, promised, made, score if public else None, len(heldout) if public else None)


def build_model(
    recipe: Recipe,
    source: ModelSource,
    attention: str | None = None,
    private: Path | None = None,
    resume: bool = False,
) -> tuple[Classifier, Method]:
    """The classifier with its method in place; everything else frozen and in eval mode unless dropout is asked for.

    The head trains with every method, since it starts at zero. ``private`` is where a run keeps what its method took
    from public records, and finds it on ``resume``."""
    method = method_of(recipe)
    encoder = load_encoder(source, attention)
    model = classifier(encoder, len(recipe.data.labels), recipe.model.pooling, recipe.model.feature_norm)
    attach_informed(model, method, recipe, source, private, resume)
    check_room(model, recipe.data.max_length)
    return model.train(recipe.model.dropout), method


def _cached(recipe: Recipe, task: Task, model: Classifier, folder: Path, compute: torch.dtype) -> CachedTask:
    """The same task, whose training batches bring what the frozen part of ``model`` computes of them."""
    assert recipe.cache is not None  # the caller asks
    return CachedTask(recipe.cache, task, model, classification_loss, folder, compute, recipe.train.token_budget)


def _promise(recipe: Recipe, folder: Path, resume: bool) -> Plan:
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


def _write_facts(
    folder: Path,
    recipe: Recipe,
    promised: Plan,
    engine: PrivateEngine,
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
        "model": source.public_name + (f" at {source.revision}" if source.revision else ""),
        "trained_parameters": trained(list(params), sum(p.numel() for p in params.values())),
        "noise_source": engine.noise_source,
        "noise_is_private": engine.noise_is_private,
        "heldout_public": recipe.evaluate.public,
        "data_set_run": books.run if books else None,
        "started_from": dict(start.facts) if start else None,
        "public_records": public_id(recipe.public) if recipe.public else None,
        "post_processing": post_processing(recipe.optimizer),
        "mask": facts_of(recipe, method_of(recipe)),
    }
    write_json(folder / "plan.json", facts)


def _restore(checkpoints: Checkpoints, engine: PrivateEngine, watch: Watch) -> None:
    at, remark = checkpoints.restore(engine.model, engine.optimizer)
    if remark:
        watch.say(remark)
    if at == 0 and engine.steps_charged >= engine.plan.steps:
        raise TrainingError(
            "Every planned step is charged and no checkpoint is left, so there is nothing trained to release. "
            "Start a new run, with train.checkpoint_every set."
        )
    watch.say(f"resuming from the checkpoint at {at} charged steps; later ones stay charged")


def _train(
    recipe: Recipe,
    engine: PrivateEngine,
    examples: list[Any],
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


def _record_score(folder: Path, score: float | None, records: int, *, public: bool) -> None:
    if score is None:
        return
    if public:
        rows = [{"name": "accuracy on held-out records", "value": round(score, 4)}]
        rows.append({"name": "held-out records", "value": records})
        # Written whole: a run resumed after its last step comes here again.
        write_atomic(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    else:
        write_json(folder / "private" / "evaluation.json", {"accuracy": score, "records": records}, private=True)


def _release(folder: Path, model: Classifier, method: Method, recipe: Recipe, source: ModelSource, task: Task) -> None:
    """Write the adapter beside its place and rename it in, so that it is there whole or not at all."""
    part = folder / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    save_classifier(
        model,
        method,
        part,
        base=source.public_name,
        revision=source.revision,
        labels=recipe.data.labels,
        drawn=source.drawn,
        inputs=task.inputs(),
    )
    picture = activations_svg(model)
    if picture:
        write_atomic(part / PICTURE, picture)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of a run stopped between here and its report
    part.rename(folder / "adapter")
    sync_folder(folder)
