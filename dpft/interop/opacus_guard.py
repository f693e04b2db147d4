"""What Opacus takes for granted and does not look at: that a trained module is called on the batch, and on it alone.

Opacus takes the leading size of a module's input for the number of examples. Where it is another one (a table of
positions that is looked up once for all, a projection that also runs on such a table, tokens laid out one after the
other) its per-example gradients are wrong, and mostly it goes on. Two answers:

    install   every model that Opacus hooks from then on raises in the forward pass, before there is a gradient
    check     the gradients that Opacus computes for a batch, compared with one example at a time
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpft.engine.preflight import perturbed, tolerance_of
from dpft.errors import PrivacyError
from dpft.per_sample.batches import examples_in, tensors
from dpft.per_sample.capture import trainable
from dpft.per_sample.oracle import Loss, per_example_gradients, sq_norms


def install(hooks: Any) -> None:
    """Let ``hooks.add_hooks`` (Opacus' GradSampleHooks) guard what it hooks. Calling it again changes nothing."""
    plain: Callable[..., None] = hooks.add_hooks
    if hasattr(plain, "__wrapped__"):
        return

    @functools.wraps(plain)
    def add_hooks(self: Any, *, batch_first: bool = True, **options: Any) -> None:
        _refuse_several_places(self._module)
        plain(self, batch_first=batch_first, **options)
        handles = _watched(self._module, self.iterate_submodules(self._module), 0 if batch_first else 1)
        self._module.autograd_grad_sample_hooks += handles  # taken away with Opacus' own

    hooks.add_hooks = add_hooks


def check(model: nn.Module, loss: Loss, batch: Any, **options: Any) -> None:
    """Compare what ``opacus.GradSampleModule`` computes with the one-example oracle, for every trained parameter.

    ``batch`` is best synthetic, of at least two examples, and no length in it equal to their number (a table that is
    looked up once for all can't hide then). ``loss(model, batch)`` returns one loss per example; ``options`` go to
    GradSampleModule. Dropout is off, trained parameters are at random values, and all is put back. Raises
    :class:`PrivacyError` naming the parameter."""
    wrapper: Any = importlib.import_module("opacus").GradSampleModule  # untyped
    with perturbed(model), _only_trained_in_train_mode(model):
        truth = per_example_gradients(model, loss, batch)
        module = wrapper(model, loss_reduction="sum", **options)
        try:
            torch.autograd.backward(loss(module, batch).sum())
            found = {name: getattr(p, "grad_sample", None) for name, p in trainable(model).items()}
        finally:
            module.cleanup()
            _take_away_activations(model)
    _compare(found, truth, examples_in(batch))


def _compare(found: dict[str, Tensor | None], truth: dict[str, Tensor], B: int) -> None:
    tolerance, overall = tolerance_of(truth), sq_norms(truth).sum().sqrt()
    for name, g in truth.items():
        sample = found[name]
        scale = g.double().norm() + 1e-3 * overall
        if not isinstance(sample, Tensor) or sample.shape != g.shape:
            shape = tuple(sample.shape) if isinstance(sample, Tensor) else "none"
            wrong = f"expected a per-example gradient of shape {tuple(g.shape)}, found {shape}"
        elif not bool((sample.double() - g.double()).norm() <= tolerance * scale):
            wrong = f"in a batch of {B} its gradient differs from the same example's alone"
        else:
            continue
        raise PrivacyError(f"Opacus gets {name} wrong: {wrong}. Use dpft.PrivateEngine, or freeze the parameter.")


def _refuse_several_places(model: nn.Module) -> None:
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            places.setdefault(id(module), []).append(name)
    for names in places.values():
        if len(names) > 1:
            raise PrivacyError(
                f"{names[0]} and {names[1]} are one module: Opacus counts its gradient once a place, too often. "
                "Use dpft.PrivateEngine, or give each place a module of its own that shares the parameter."
            )


def _watched(model: nn.Module, hooked: Iterable[nn.Module], axis: int) -> list[Any]:
    """Hooks that raise where a trained module is called on anything but as many examples as the model was."""
    names = {id(module): name for name, module in model.named_modules()}
    examples: list[int] = []

    def read(_model: nn.Module, args: Any, kwargs: Any) -> None:
        examples[:] = [t.shape[axis] for t in tensors((args, kwargs)) if t.dim() > axis][:1]

    def compare(module: nn.Module, args: Any) -> None:
        if not module.training or not torch.is_grad_enabled() or not args or not isinstance(args[-1], Tensor):
            return  # then Opacus records nothing, or can't
        found = args[-1].shape[axis] if args[-1].dim() > axis else 0
        if examples and found != examples[0]:
            raise PrivacyError(
                f"Under Opacus {names[id(module)] or 'the model'} is called on a leading size that is not the number "
                "of examples: their gradients would be wrong in silence. Freeze it, or use dpft.PrivateEngine, which "
                "tells the two apart."
            )

    handles = [model.register_forward_pre_hook(read, with_kwargs=True)]
    return handles + [m.register_forward_pre_hook(compare) for m in hooked if type(m).__name__ != "RNNLinear"]


@contextmanager
def _only_trained_in_train_mode(model: nn.Module) -> Iterator[None]:
    """Opacus records in train mode alone; dropout is wanted nowhere."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = any(p.requires_grad for p in module.parameters(recurse=False))
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _take_away_activations(model: nn.Module) -> None:
    """What Opacus keeps on modules until a backward pass that an error may have prevented."""
    for module in model.modules():
        for name in ("activations", "max_batch_len"):
            module.__dict__.pop(name, None)
