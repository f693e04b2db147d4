"""Before any private record is read: proof, on synthetic inputs, that the gradients are per example."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpft.engine.clipping import total_sq_norm
from dpft.engine.collect import checked, collect
from dpft.engine.guard import frozen_digest
from dpft.engine.padding import check_padding
from dpft.errors import DpftError, InputError, NoRuleError, OneAtATime, PrivacyError, TrainingError
from dpft.per_sample import Form, Uses, per_example_gradients
from dpft.per_sample.batches import examples_in, mapped, take
from dpft.per_sample.capture import trainable
from dpft.per_sample.memory import out_of_memory
from dpft.per_sample.oracle import Loss, sq_norms, squares
from dpft.per_sample.uses import repeated, telling_number

# Relative error allowed between two ways of computing one gradient: rounding, some 100 eps deep.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def preflight(model: nn.Module, loss: Loss, batch: Any, compute: torch.dtype = torch.float32) -> Uses:
    """Show that every trainable parameter yields per-example gradients equal to the one-example oracle's.

    ``batch`` is synthetic, with at least two examples. The trainable parameters are moved to random values
    meanwhile (at a zero-initialised head every gradient below it would be zero and prove nothing), dropout
    is off, and everything is put back exactly. Then the model, in the mode it was given in, is shown to keep
    neighbours apart. Raises :class:`PrivacyError` naming the parameter for: one
    that receives no gradient, one whose gradient is not its example's alone (batch statistics, a lost batch
    axis, a shared use missed), one that the whole batch shares; and for a model that changes its buffers.
    Where a parameter is used in a way that has no rule, or that can't be captured, examples will run one at a time:
    exact, and announced with its cost (:class:`OneAtATime`). Returns which tensors in the model hold examples, as
    learnt here; training goes by it. ``compute`` is the number type that training will run in."""
    if not trainable(model):
        raise InputError("Expected a model with trainable parameters, found none; call dpft.attach first.")
    B = examples_in(batch)
    if B < 2:
        raise InputError(f"Expected a synthetic batch of at least 2 examples for the preflight, found {B}.")
    frozen = frozen_digest(model)
    with perturbed(model):
        try:
            uses = _prove(model, loss, batch, compute)
        except NoRuleError as reason:
            uses = Uses(alone=True)
            _prove_alone(model, loss, batch, str(reason))
        except DpftError:
            raise
        except Exception as error:  # it may lie with the capture; if not, it comes again in the plain passes
            if out_of_memory(error):
                raise TrainingError(
                    "A few synthetic examples as long as a record do not fit in memory: shorten data.max_length, set "
                    "train.recompute (in code: model.activation_checkpointing_enable()) or use a smaller model."
                ) from error
            uses = Uses(alone=True)
            _prove_alone(
                model, loss, batch, f"{type(error).__name__} ({str(error).strip().partition(chr(10))[0]:.200})"
            )
    if frozen_digest(model) != frozen:
        raise PrivacyError(
            "The model's forward pass writes to a buffer or a frozen parameter, which would carry private data "
            "past the noise. Put such modules in eval mode or remove them."
        )
    return uses


def _prove(model: nn.Module, loss: Loss, batch: Any, compute: torch.dtype) -> Uses:
    B, uses = examples_in(batch), Uses()
    with _evaluating(model):
        many = telling_number(model, batch)
        for dtype in {torch.float32, compute}:
            try:
                collect(model, loss, repeated(batch, many), expected=many, uses=uses, compute=dtype)
            except PrivacyError as error:  # whether it is the loss or the capture the plain passes will show
                raise NoRuleError(str(error)) from error
        uses.learning = False
        truth = per_example_gradients(model, loss, batch)
        for rows in (slice(0, B), slice(0, 1)):
            part = take(batch, rows)
            grads, losses = collect(model, loss, part, expected=examples_in(part), uses=uses)
            _none_missing(model, grads)
            _check_losses(model, loss, part, losses)
            _compare(grads, {name: g[rows] for name, g in truth.items()})
        tolerance = tolerance_of(truth)
        del truth  # of all weights it takes several times their memory, and what follows needs as much
        check_padding(model, loss, batch, tolerance)
    _check_neighbours(model, loss, batch, uses)
    return uses


def _prove_alone(model: nn.Module, loss: Loss, batch: Any, reason: str) -> None:
    """One example at a time is the truth itself; what is left to show is that every parameter is reached, and that the
    model computes for an example alone what it computes for it in a batch.

    Announced, with what it costs on this batch."""
    B, uses = examples_in(batch), Uses(alone=True)
    with _evaluating(model), torch.no_grad():
        losses = checked(loss(model, batch), B)
        _check_losses(model, loss, batch, losses)
        check_padding(model, loss, batch, _TOLERANCE.get(losses.dtype, 0.1))
    began = time.perf_counter()
    grads, _ = collect(model, loss, batch, expected=B, uses=uses)
    alone = time.perf_counter() - began
    _none_missing(model, grads)
    began = time.perf_counter()
    torch.autograd.grad(loss(model, batch).sum(), list(trainable(model).values()), allow_unused=True)
    together = time.perf_counter() - began
    warnings.warn(
        f"Examples run one at a time: exact, but {alone / together:.1f} times the time of an ordinary step on the "
        f"{B} synthetic examples, and more on larger batches. The reason: {reason}",
        OneAtATime,
        stacklevel=4,
    )


def _none_missing(model: nn.Module, grads: Mapping[str, Form]) -> None:
    missing = next((name for name in trainable(model) if name not in grads), None)
    if missing is not None:
        raise PrivacyError(
            f"Parameter {missing} is trainable but no gradient reaches it: it would receive noise "
            "and no signal. Freeze it, or use it in the forward pass."
        )


@torch.no_grad()
def _check_losses(model: nn.Module, loss: Loss, batch: Any, losses: Tensor) -> None:
    """Each entry is its own example's loss. A batch mean, repeated, has the right sum and the right gradients
    here, where all examples are equally long; among records of unequal lengths it has neither."""
    alone = [loss(model, take(batch, slice(i, i + 1))).reshape(-1) for i in range(len(losses))]
    truth = torch.cat(alone).double()
    tolerance = 0.05 * _TOLERANCE.get(losses.dtype, 0.1)
    if not bool((losses.double() - truth).norm() <= tolerance * truth.norm()):
        raise PrivacyError(
            "An example's loss in a batch differs from its loss alone: it is averaged or normalised over the "
            "batch. Use reduction='none' and sum or average within each example only."
        )


def _check_neighbours(model: nn.Module, loss: Loss, batch: Any, uses: Uses) -> None:
    """In the model's own mode: another last example leaves every other example's gradient as it was.

    Batches of one shape round alike, so this sees weaker coupling than a comparison with the truth can; and
    given the same random draws it holds with dropout on, where there is no truth to compare with. Torch's own
    random state is put back."""
    B = examples_in(batch)
    device = next(iter(trainable(model).values())).device
    first: dict[str, Tensor] = {}
    for other in (B - 1, *range(B - 1)):
        changed = mapped(batch, lambda t, i=other: torch.cat([t[:-1], t[i : i + 1]]))  # type: ignore[misc]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(20211013)
            grads, _ = collect(model, loss, changed, expected=B, uses=uses)
        _none_missing(model, grads)
        rest = {name: form.part(slice(0, B - 1)) for name, form in grads.items()}
        if first:
            _same(rest, first, share=0.05)
        else:
            first = {name: form.dense() for name, form in rest.items()}


def _compare(grads: Mapping[str, Form], truth: Mapping[str, Tensor]) -> None:
    tolerance = _same(grads, truth)
    sq = total_sq_norm(grads).double()
    if not bool((sq >= sq_norms(truth) * (1 - 2 * tolerance)).all()):
        raise PrivacyError("A per-example norm came out below the true one; clipping by it would not hold.")


def _same(found: Mapping[str, Form], truth: Mapping[str, Tensor], share: float = 1.0) -> float:
    """Raise unless the gradients agree within ``share`` of the tolerance; returns the relative error allowed.

    Of one parameter and one example at a time: dense, all together take more memory than training does."""
    tolerance = share * tolerance_of(truth)
    overall = sq_norms(truth).sum().sqrt()
    for name, g in truth.items():
        # A gradient that is zero in exact arithmetic (a key's bias) is compared on the scale of the others.
        scale = squares(g).sum().sqrt() + 1e-3 * overall
        if not _difference(found[name], g) <= tolerance * scale:
            raise PrivacyError(
                f"The gradient of {name} in a batch differs from the same example's gradient alone: examples are "
                "coupled (batch statistics, in-batch negatives, a mean over the batch) or their axis is lost. "
                "Change the module that mixes them, or freeze this parameter."
            )
    return tolerance


def _difference(form: Form, truth: Tensor) -> float:
    """The norm of what dense gradients [B, ...] differ by; infinite where their shapes do."""
    total = 0.0 if form.batch == len(truth) else math.inf
    for i in range(len(truth)):
        one, dense = truth[i : i + 1], form.part(slice(i, i + 1)).dense()
        total += float(squares(dense, one)) if dense.shape == one.shape else math.inf
    return math.sqrt(total)


def tolerance_of(gradients: Mapping[str, Tensor]) -> float:
    """Relative error allowed between two ways of computing these gradients."""
    return max(_TOLERANCE.get(g.dtype, 0.0) for g in gradients.values())


@contextmanager
def perturbed(model: nn.Module) -> Iterator[None]:
    """Trainable parameters at random values; put back at the end, bit for bit."""
    saved = {name: p.detach().clone() for name, p in trainable(model).items()}
    generator = torch.Generator().manual_seed(20211013)  # nothing private depends on it
    try:
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(0.05 * torch.randn(p.shape, generator=generator).to(p))
        yield
    finally:
        with torch.no_grad():
            for name, p in trainable(model).items():
                p.copy_(saved[name])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; the modes are put back one by one."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
