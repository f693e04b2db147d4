"""Make a model trainable in exactly the places a method says, and nowhere else."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.peft.around import Around
from dpft.peft.families import FAMILIES, NoRowError, model_type
from dpft.peft.inject import inside, replace_module
from dpft.peft.method import Method, Public, Wrapper

M = TypeVar("M", bound=nn.Module)


def attach(model: M, method: Method, *, train: tuple[str, ...] = (), seed: int = 0, public: Public | None = None) -> M:
    """Put ``method``'s trainable parameters into ``model``, freeze the rest, and return it, in eval mode.

    ``train`` names modules that train in full beside the method (a new classification head, say).
    ``seed`` fixes the initial values of the added parameters only. ``public`` are records for a method that looks at
    some before it trains (``wants_public``); no other may see any. Errors: :class:`InputError` for a name
    that the model has not, and for a method that has no place in it; the model is then unchanged."""
    if any(isinstance(m, Wrapper | Around) for m in model.modules()):
        raise InputError("This model already carries a method; attach to a fresh copy of it.")
    if method.wants_public and public is None:
        raise InputError(
            f"The method {method.name!r}, as it is set, looks at records before it trains, outside of the noised "
            "gradients: give it records that are public (public=...), or choose a setting that needs none."
        )
    modules = dict(model.named_modules())
    for name in train:
        if name not in modules or not any(True for _ in modules[name].parameters()):
            raise InputError(f"train names {name!r}, which is not a module with parameters of this model.")
    try:
        declared = [*method.inject(model, torch.Generator().manual_seed(seed))]
        declared += [p for name in train for p in modules[name].parameters()]
        check_separable(model, train)
        if not declared:
            raise InputError(f"The method {method.name!r} trains nothing in this model; name modules in train.")
        if method.wants_public and public is not None and public.batches:
            declared = _informed(model, method, public, declared)
    except InputError as error:
        _take_out(model)
        if isinstance(error, NoRowError) and not hasattr(method, "targets"):
            raise _without_row(model, method) from None
        raise
    model.requires_grad_(False)
    for parameter in declared:
        parameter.requires_grad_(True)
    model.eval()
    return model


def _without_row(model: nn.Module, method: Method) -> InputError:
    """For a method whose places can't be named by hand."""
    return InputError(
        f"Expected a model of a family that method.name = {method.name} is tested on ({', '.join(FAMILIES)}), found "
        f"{model_type(model)!r}; use lora with method.targets, bitfit or full."
    )


def _informed(model: nn.Module, method: Method, public: Public, declared: list[nn.Parameter]) -> list[nn.Parameter]:
    """What trains once the method has seen public records, which may have replaced parameters by others."""
    names = [name for name, p in model.named_parameters() if id(p) in {id(d) for d in declared}]
    method.inform(model, public)
    now = dict(model.named_parameters())
    return [now[name] for name in names]


def _take_out(model: nn.Module) -> None:
    for name, module in reversed(list(model.named_modules(remove_duplicate=False))):  # a wrapper inside another first
        parent, _, child = name.rpartition(".")
        if isinstance(module, Wrapper):
            replace_module(model, name, module.base_layer)
        elif isinstance(module, Around):
            module.take_out(model.get_submodule(parent), child)


def check_separable(model: nn.Module, train: tuple[str, ...]) -> None:
    """What trains in full is saved module by module, so nothing in it may be shared or adapted.

    Asked before training, since an adapter that can't be saved has spent its budget for nothing."""
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in train:
        module = model.get_submodule(name)
        if any(isinstance(m, Wrapper) for m in module.modules()):
            raise InputError(f"train names {name!r}, in which the method adapts a layer; leave it to one of the two.")
        ids = {id(p) for p in module.parameters()}
        other = next((n for n, p in named.items() if id(p) in ids and not inside(n, (name,))), None)
        if other is not None:
            raise InputError(
                f"train names {name!r}, whose weights are {other} too, so they can't be saved as its own. "
                "Untie them before training (tie_word_embeddings=False)."
            )
