"""What may leave the building: the trained parameters, in safetensors, with what is needed to load them.

    adapter_model.safetensors  what trained, under the names that HF peft gives it
    adapter_config.json        HF peft's configuration: PeftModel.from_pretrained reads both
    head.safetensors           the linear head, where the task has one
    dpft.json                  the base model's public name, pooling, labels; read by dpft.load

LoRA, IA3 and Norms load in peft as they are, every other method after ``import dpft``. Only declared trainable
parameters are written, so nothing batch-shaped, no path and no random state can be among them. Nothing is ever
pickled or unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dpft.config.task_fields import LANGUAGE_TASKS, TASKS, Task
from dpft.errors import InputError
from dpft.files import read_json, write_atomic, write_json
from dpft.interop.peft_format import adapter_config, adapter_tensors, check, restore
from dpft.models.build import TaskModel, task_model
from dpft.models.drawn import Drawn, checked, frozen_digest
from dpft.models.source import ModelSource, resolve
from dpft.peft.attach import attach
from dpft.peft.method import Method, Public
from dpft.peft.registry import method_from, section_of

_FORMAT = 1


def save_adapter(
    model: nn.Module,
    method: Method,
    folder: str | Path,
    *,
    base: str,
    revision: str | None = None,
    train: tuple[str, ...] = (),
) -> None:
    """Write an adapter for any HF model that :func:`dpft.attach` prepared, in HF peft's format.

    ``base`` is the base model's public name, ``revision`` its commit; ``train`` the modules that trained in full,
    as ``attach`` was given them. Errors: :class:`InputError` for a module in ``train`` whose weights are another
    module's too, or in which the method adapts a layer."""
    folder = Path(folder)
    tensors = adapter_tensors(model, method, train)
    config = adapter_config(model, method, base=base, revision=revision, train=train)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
    write_json(folder / "adapter_config.json", config)


def save_model(
    model: TaskModel,
    method: Method,
    folder: Path,
    *,
    base: str,
    revision: str | None,
    labels: tuple[str, ...],
    task: Task = "classification",
    private: bool = True,
    tokenizer: str | None = None,
    drawn: Drawn | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Write a trained model: a peft adapter of its encoder, its head if it got one, and how they fit together.

    ``drawn`` makes an encoder again that had no pretrained weights; ``inputs`` says how records became the model's
    inputs, in constants of the recipe."""
    save_adapter(model.encoder, method, folder, base=base, revision=revision)
    head = {name: p.detach().cpu().contiguous() for name, p in model.head.named_parameters()}
    if head:
        write_atomic(folder / "head.safetensors", save(head))
    if not private:
        write_atomic(folder / "NOT-PRIVATE", b"Trained without privacy: these weights may hold single records.\n")
    write_json(
        folder / "dpft.json",
        {
            "format": _FORMAT,
            "base": base,
            "revision": revision,
            "task": task,
            "private": private,
            **({"tokenizer": tokenizer} if tokenizer else {}),
            "labels": list(labels),
            "pooling": getattr(model, "pooling", None),
            "feature_norm": getattr(model, "feature_norm", None),
            "method": section_of(method.stored),
            **(inputs or {}),
            **({"drawn": _drawn_facts(model, drawn)} if drawn else {}),
        },
    )


def load(folder: str | Path, *, base: str | None = None) -> TaskModel:
    """The trained model that a run left in its ``adapter/`` folder, in eval mode.

    ``base`` names the base model where the adapter came from a local folder. Errors: :class:`InputError` for
    a damaged or foreign folder; tensors must have exactly the names and shapes that the method creates."""
    folder = Path(folder)
    meta = read_json(folder / "dpft.json")
    try:
        method = method_from(meta["method"])
        task, pooling, norm = meta.get("task", "classification"), meta["pooling"], meta["feature_norm"]
        outputs = max(1, len(meta["labels"]))
        known = pooling is None if task in LANGUAGE_TASKS else task in TASKS and pooling in ("cls", "mean", "last")
        sound = meta["format"] == _FORMAT and known and (norm is None or 0 < norm < math.inf)
        source = base_source(meta, base)
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise InputError("dpft.json is damaged, or of another version: expected it as this dpft writes it.")
    model = task_model(task, source, outputs=outputs, pooling=pooling, feature_norm=norm)
    attach(model, method, train=model.trained_in_full, public=Public())
    fill(model, method, folder, meta)
    return model


def fill(model: TaskModel, method: Method, folder: Path, meta: Mapping[str, Any]) -> None:
    """Put the tensors of an adapter's folder into a model that ``method`` was attached to; ``meta`` is its
    dpft.json. Raises :class:`InputError` where they do not fit."""
    restore(model.encoder, method, _read(folder / "adapter_model.safetensors"))
    linear = dict(model.head.named_parameters())
    head = _read(folder / "head.safetensors") if linear else {}
    check(head, linear)
    for name, parameter in linear.items():
        parameter.data.copy_(head[name])
    if meta.get("drawn") is not None and frozen_digest(model) != meta["drawn"].get("frozen_sha256"):
        raise InputError(
            "The frozen initial weights could not be drawn again as they were in training: this machine or version of "
            "torch draws others. Export the run with --merge where it was trained."
        )


def base_source(meta: Mapping[str, Any], base: str | None = None) -> ModelSource:
    """Where to load the base model from that a ``dpft.json`` names; ``base`` says where a local one is.

    Raises :class:`InputError` where it was a local folder and ``base`` is not given."""
    name, drawn = str(meta["base"]), meta.get("drawn")
    if drawn is not None:
        try:
            made = Drawn(drawn["config"], int(drawn["seed"]))
        except (KeyError, TypeError, ValueError):
            raise InputError("dpft.json is damaged: expected the model's configuration and seed in it.") from None
        checked(made.config)
        return ModelSource(name, name, drawn=made)
    if base is None and name.startswith("folder:"):
        raise InputError(
            f"The base model was the local folder {name.removeprefix('folder:')!r}, whose path is not recorded. "
            'Give it: dpft.load(folder, base="path/to/model"), or --base on the command line.'
        )
    return resolve(base or name, meta["revision"])


def _drawn_facts(model: TaskModel, drawn: Drawn) -> dict[str, Any]:
    return {"config": dict(drawn.config), "seed": drawn.seed, "frozen_sha256": frozen_digest(model)}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise InputError(f"{path.name} is missing or damaged; expected safetensors as dpft writes them.") from None
