"""Make a model trainable in exactly the places a method says, and nowhere else."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from dpft.errors import InputError
from dpft.peft.lora import LoRA, LoRALinear
from dpft.peft.registry import default_targets

M = TypeVar("M", bound=nn.Module)


def attach(model: M, method: LoRA, *, train: tuple[str, ...] = (), seed: int = 0) -> M:
    """Freeze ``model``, put ``method``'s trainable parameters in, and return it, in eval mode.

    ``train`` names modules that train in full beside the method (a new classification head, say).
    ``seed`` fixes the initial values of the added parameters only. Errors: :class:`InputError` for a name
    that the model has not."""
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise InputError("This model already carries a method; attach to a fresh copy of it.")
    targets = method.targets or default_targets(getattr(getattr(model, "config", None), "model_type", "unknown"))
    modules = dict(model.named_modules())
    for name in train:
        if name not in modules or not any(True for _ in modules[name].parameters()):
            raise InputError(f"train names {name!r}, which is not a module with parameters of this model.")
    added = method.inject(model, targets, seed)
    model.requires_grad_(False)
    for module in (*added, *(modules[name] for name in train)):
        module.requires_grad_(True)
    model.eval()
    return model
