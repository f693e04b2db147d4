"""What trains in a model of the real shape, counted on the model itself: no weights are fetched, no memory is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dpft.config import Recipe
from dpft.config.task_fields import LANGUAGE_TASKS
from dpft.models.classifier import classifier
from dpft.models.drawn import checked
from dpft.models.source import quiet
from dpft.peft.attach import attach
from dpft.peft.method import Public
from dpft.peft.registry import method_of
from dpft.shapes import config_of

_counted: dict[tuple[Any, ...], int] = {}


def count_trained(recipe: Recipe) -> int | None:
    """Trained numbers of a recipe, its head included; None where the model's shape would have to be fetched.

    Equal shapes are counted once. Errors: those of :func:`dpft.peft.attach.attach`."""
    config = config_of(recipe.model.source)
    if config is None:
        return None
    key = (recipe.model.source, recipe.method, recipe.beside, recipe.data.task, recipe.data.outputs)
    if key not in _counted:
        # Methods that look at public records are attached without any: what trains is of the same size.
        language = recipe.data.task in LANGUAGE_TASKS
        model = attach(_model(recipe, config), method_of(recipe), train=() if language else ("head",), public=Public())
        _counted[key] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return _counted[key]


def _model(recipe: Recipe, config: dict[str, Any]) -> nn.Module:
    """The model on torch's meta device: shapes without values."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = {"causal-lm": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}.get(recipe.data.task, AutoModel)
    fields = {name: value for name, value in config.items() if name != "model_type"}
    of_recipe = recipe.model.source.startswith("config:")  # a published one has fields that no class declares
    values = checked(config) if of_recipe else AutoConfig.for_model(config["model_type"], **fields)
    with quiet(), torch.device("meta"):
        model: nn.Module = kind.from_config(values)
    if recipe.data.task in LANGUAGE_TASKS:
        return model
    return classifier(model, recipe.data.outputs, recipe.model.pooling, recipe.model.feature_norm)
