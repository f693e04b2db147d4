"""What a method adds to a model as a whole, and how to find all that any method added.

A wrapper stands around one module (``Wrapper``, in ``method.py``). A part that needs the model's own input or output,
a prompt or a ladder, lies in the model beside the other modules and works by hooks, since nothing stands around the
model that a user holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpft.peft.method import Wrapper


class Around(nn.Module):
    """Changes what goes into a model and what comes out of it. ``put`` it in under a name; ``enabled = False``
    leaves the model as it was without it."""

    enabled: bool = True

    def put(self, model: nn.Module, name: str) -> None:
        model.add_module(name, self)
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def take_out(self, model: nn.Module, name: str) -> None:
        for handle in self._handles:
            handle.remove()
        delattr(model, name)

    def before(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the model's forward pass, by name, as they shall be."""
        return arguments

    def after(self, model: nn.Module, arguments: Mapping[str, Any], output: Any) -> Any:
        """What the model shall return. ``arguments`` are those that it ran on, as ``before`` left them."""
        return output

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return ((), self.before(model, by_name(model, args, kwargs))) if self.enabled else (args, kwargs)

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self.after(model, kwargs, output) if self.enabled else output


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``model``, each under its name in the signature."""
    names = (n for n, p in signature(model.forward).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def added(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers that a method put into ``model``, by name, each once: what stands in a
    wrapper and not in what it wraps, and all that lies around the model."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Wrapper | Around):
            for key, tensor in module.state_dict(prefix=name + ".", keep_vars=True).items():
                if not (isinstance(module, Wrapper) and key.startswith(f"{name}.base_layer.")):
                    found[key] = tensor
    return list_once(found)


def list_once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, without the second and later names of one tensor."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}
