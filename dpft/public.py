"""Declared public records: from a recipe's ``[public]`` table to what a method looks at before it trains.

Nothing computed from them costs privacy; that they are public is the recipe's word, and stands in the statement. What
a method took from them, or from gradients that were paid for, is kept under private/, so that a resumed run goes on
with the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.func import functional_call

from dpft.config import DataSection, Recipe
from dpft.data.origin import local_files
from dpft.engine.microbatch import cut
from dpft.errors import InputError
from dpft.files import private_folder, write_atomic
from dpft.interop.peft_format import adapter_tensors, restore
from dpft.models.build import TaskModel
from dpft.models.losses import Loss
from dpft.models.source import ModelSource
from dpft.peft.attach import attach
from dpft.peft.method import Method, Public
from dpft.peft.registry import method_of
from dpft.task import task_of, tokenizer_of

_KEPT = "informed.safetensors"
_HEAD_STD = 0.02


def check_public(recipe: Recipe) -> None:
    """Before anything is read: :class:`InputError` where ``[public]`` is missing, of no use, or names private files."""
    method = method_of(recipe)
    wants = method.wants_public and recipe.start is None  # a second phase goes on with what the first one took
    if wants and recipe.public is None:
        raise InputError(
            f"The method {method.name!r}, as it is set, looks at records before it trains: declare public ones in a "
            "[public] table, with the fields of [data], or choose a setting that needs none."
        )
    if recipe.public is None:
        return
    if not wants:
        raise InputError(
            f"[public] names records, but the method {method.name!r}, as it is set, looks at none before it trains; "
            "leave the table out."
        )
    if local_files(recipe.public) & local_files(recipe.data):
        raise InputError(
            "public.path: a file of [data] is among the files of [public], and the records that train or are held out "
            "are not public; name others."
        )


def attach_informed(
    model: TaskModel, method: Method, recipe: Recipe, source: ModelSource, private: Path | None, resume: bool
) -> None:
    """``attach``, with the records of ``[public]`` for a method that wants some.

    ``private``: the run's folder in which it keeps what the method took, and on ``resume`` finds it."""
    if not method.wants_public:
        attach(model, method, train=model.trained_in_full, seed=recipe.seed)
        return
    if resume and private is not None and (private / _KEPT).exists():
        attach(model, method, train=model.trained_in_full, seed=recipe.seed, public=Public())
        take_kept(model, method, private)
    elif recipe.public is None:  # a second phase: what the first one took is about to be read
        attach(model, method, train=model.trained_in_full, seed=recipe.seed, public=Public())
    else:
        found = public_records(recipe, recipe.public, source, model)
        attach(model, method, train=model.trained_in_full, seed=recipe.seed, public=found)
        if private is not None:
            keep(model, method, private)


def public_records(recipe: Recipe, section: DataSection, source: ModelSource, model: TaskModel) -> Public:
    """Read the records of ``section``, in micro-batches, with the loss that gradients before training are of."""
    task = task_of(section, tokenizer_of(recipe.model, source), model)
    examples = task.examples(task.load().train)
    pieces = cut(range(len(examples)), [task.length(e) for e in examples], recipe.train.tokens)
    batches = [task.collate([examples[i] for i in piece]) for piece in pieces]
    return Public(batches, drawn_head_loss(model, task.loss, recipe.seed))


def drawn_head_loss(model: TaskModel, training: Loss, seed: int) -> Loss:
    """The training loss under a head that is drawn from N(0, 0.02^2), as transformers starts its own.

    A classifier's own head starts at zero, which hides every gradient behind it; a language model has its own."""
    if not model.trained_in_full:
        return training
    weight = model.head.get_parameter("weight")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(weight.shape).normal_(0, _HEAD_STD, generator=generator)

    def loss(given: nn.Module, batch: Any) -> Tensor:
        def headed(**inputs: Tensor) -> Any:
            return functional_call(given, {"head.weight": drawn.to(weight.device, weight.dtype)}, (), inputs)

        return training(headed, batch)  # type: ignore[arg-type]

    return loss


def keep(model: TaskModel, method: Method, private: Path) -> None:
    """Write down, durably, what ``method`` now is in ``model``."""
    tensors = adapter_tensors(model.encoder, method)
    write_atomic(private_folder(private) / _KEPT, save(tensors), private=True)


def take_kept(model: TaskModel, method: Method, private: Path) -> bool:
    """Put it back into a freshly attached ``model``; False where nothing was kept."""
    if not (private / _KEPT).exists():
        return False
    try:
        tensors = load_file(private / _KEPT)
    except (SafetensorError, OSError):
        raise InputError(f"{_KEPT} under private/ is damaged; start a new run.") from None
    restore(model.encoder, method, tensors)
    return True
