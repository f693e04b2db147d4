"""A model with a method in HF peft's format: the contents of adapter_config.json and adapter_model.safetensors.

    LoRA          peft's LORA        \\
    IA3           peft's IA3          > load without dpft
    Norms         peft's LN_TUNING   /
    all others    the type DPFT, which ``import dpft`` makes known to peft

Each stored tensor is a slot: how to read it from the model, and how to put it back. A parameter that several
modules share is stored once under DPFT; peft's own types have no sharing, so there each module has its copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.interop.register import PEFT_TYPE
from dpft.peft.around import added
from dpft.peft.attach import check_separable
from dpft.peft.ia3 import IA3, IA3Linear
from dpft.peft.inject import inside
from dpft.peft.lora import PARTS, LockedLoRALinear, LoRA, LoRALinear
from dpft.peft.method import Method
from dpft.peft.norms import Norms
from dpft.peft.registry import section_of
from dpft.per_sample.capture import trainable

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Slot:
    """One stored tensor. ``write`` takes any tensor of ``read``'s shape."""

    read: Callable[[], Tensor]
    write: Callable[[Tensor], object]


def adapter_config(
    model: nn.Module, method: Method, *, base: str, revision: str | None = None, train: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The contents of ``adapter_config.json``."""
    return {
        **_method_config(model, method, train),
        "base_model_name_or_path": base,
        "revision": revision,
        "modules_to_save": list(train) or None,
        "inference_mode": True,
    }


def adapter_tensors(model: nn.Module, method: Method, train: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The contents of ``adapter_model.safetensors``: the declared parameters, and what the method drew and froze.

    Raises :class:`InputError` for a module in ``train`` that can't be stored by itself."""
    check_separable(model, train)
    slots = _slots(model, method, train)
    return {name: slot.read().detach().clone().cpu().contiguous() for name, slot in slots.items()}


def restore(model: nn.Module, method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Put stored tensors into a model that ``method`` was attached to, without a ``train``.

    Raises :class:`InputError` unless names, shapes and finiteness are exactly right."""
    fit(model, tensors)
    slots = _slots(model, method, ())
    check(tensors, {name: slot.read() for name, slot in slots.items()})
    for name, slot in slots.items():
        slot.write(tensors[name])
    for name, slot in slots.items():
        if not torch.equal(slot.read(), tensors[name].to(slot.read())):
            # Copies of one shared parameter that differ, or something where the method has none.
            raise InputError(f"The adapter does not fit this model: {name} holds values that the method can't have.")


def check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Exactly the expected names and shapes, and finite values, or :class:`InputError`."""
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[0]
        raise InputError(f"The adapter does not fit this model: {odd} is on one side only.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or not bool(tensor.isfinite().all()):
            raise InputError(f"The adapter does not fit this model: {name} has another shape or non-finite values.")


def names_to_store(model: nn.Module, trained: Mapping[str, nn.Parameter], apart: tuple[str, ...]) -> list[str]:
    """Of the names in ``trained``, those outside the modules ``apart``, and what the method added and did not train,
    persistent buffers included."""
    ids = {id(t) for t in (*trained.values(), *added(model).values())}
    return [n for n, t in _tensors(model).items() if id(t) in ids and not inside(n, apart)]


def fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let the added modules whose shapes depend on a choice that was made once (a mask) take the stored shapes.

    Such a module has ``fit_to(tensors)``, which gets what is stored for it by its own names, and may raise
    :class:`InputError`."""
    for name, module in model.named_modules():
        if hasattr(module, "fit_to"):
            start = f"{PREFIX}{name}."
            module.fit_to({key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)})


def left_out(model: nn.Module) -> list[str]:
    """Modules of the architecture that this model was rid of (an unused pooler), which a fresh one has again."""
    return [
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        for child, found in module._modules.items()
        if found is None
    ]


def _method_config(model: nn.Module, method: Method, train: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(method, LoRA) and not _layers(model, LockedLoRALinear):
        return _lora_config(model, method)
    if isinstance(method, IA3):
        layers = _layers(model, IA3Linear)
        return {
            "peft_type": "IA3",
            "target_modules": sorted(layers),
            "feedforward_modules": sorted(name for name, layer in layers.items() if layer.side == "input"),
            "fan_in_fan_out": _transposed(layers),
        }
    if isinstance(method, Norms):
        return {"peft_type": "LN_TUNING", "target_modules": sorted(_norms(model, train))}
    return {"peft_type": PEFT_TYPE, "method": section_of(method.stored), "exclude_modules": left_out(model) or None}


def _slots(model: nn.Module, method: Method, train: tuple[str, ...]) -> dict[str, Slot]:
    """Every stored tensor under its full name."""
    if isinstance(method, LoRA) and not _layers(model, LockedLoRALinear):  # peft's own LoRA knows no pattern
        slots = {
            f"{name}.lora_{x}.weight": slot
            for name, layer in _layers(model, LoRALinear).items()
            for x, slot in zip("AB", _lora_slots(layer), strict=True)
        }
    elif isinstance(method, IA3):
        slots = {f"{name}.ia3_l": _ia3_slot(layer) for name, layer in _layers(model, IA3Linear).items()}
    elif isinstance(method, Norms):
        slots = {
            f"{name}.ln_tuning_layers.{key}": _plain(p)
            for name, norm in _norms(model, train).items()
            for key, p in norm.named_parameters(recurse=False)
        }
    else:
        named = _tensors(model)
        slots = {name: _plain(named[name]) for name in names_to_store(model, trainable(model), train)}
    for name in train:
        state = model.get_submodule(name).state_dict(keep_vars=True)
        slots.update({f"{name}.{key}": _plain(value) for key, value in state.items()})
    return {PREFIX + name: slot for name, slot in slots.items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _plain(parameter: Tensor) -> Slot:
    return Slot(lambda: parameter.detach(), lambda value: parameter.data.copy_(value))


def _lora_config(model: nn.Module, method: LoRA) -> dict[str, Any]:
    """peft scales by lora_alpha / r, where r counts the pairs of all adapted parts of a projection."""
    layers = _layers(model, LoRALinear)
    ranks = {name: layer.factors()[0].shape[0] for name, layer in layers.items()}
    own = {name: r for name, r in ranks.items() if r != method.rank}
    rooted = method.rslora and not own
    return {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": method.alpha if rooted else method.scaling * method.rank,
        "use_rslora": rooted,
        "rank_pattern": {re.escape(name): r for name, r in own.items()},
        "alpha_pattern": {re.escape(name): method.scaling * r for name, r in own.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": _transposed(layers),
        "target_modules": sorted(layers),
    }


def _lora_slots(layer: LoRALinear) -> tuple[Slot, Slot]:
    def write(B: Tensor) -> None:
        if not layer.parts:
            layer.lora_B.get_parameter("weight").data.copy_(B)
            return
        size, r = B.shape[0] // len(PARTS), layer.rank
        for i, (part, pair) in enumerate(zip(layer.parts, layer.lora_B.children(), strict=True)):
            pair.get_parameter("weight").data.copy_(B[part * size : (part + 1) * size, i * r : (i + 1) * r])

    return _plain(layer.lora_A.weight), Slot(lambda: layer.factors()[1], write)


def _ia3_slot(layer: IA3Linear) -> Slot:
    vector = layer.ia3_l
    shape = (1, -1) if layer.side == "input" else (-1, 1)
    return Slot(lambda: vector.detach().reshape(shape), lambda value: vector.data.copy_(value.flatten()))


def _layers(model: nn.Module, kind: type[Any]) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _norms(model: nn.Module, train: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules whose own parameters all train, which is what the method chose."""
    own = {name: list(m.parameters(recurse=False)) for name, m in model.named_modules() if "Norm" in type(m).__name__}
    found = {name for name, ps in own.items() if ps and all(p.requires_grad for p in ps) and not inside(name, train)}
    return {name: model.get_submodule(name) for name in found}


def _transposed(layers: Mapping[str, Any]) -> bool:
    """Whether the weights are kept as [inputs, outputs], as GPT-2's are."""
    return any(not isinstance(layer.base_layer, nn.Linear) for layer in layers.values())
