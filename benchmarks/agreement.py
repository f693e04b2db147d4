"""Before anything is timed: every variant must give the optimizer the gradient of one record at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peers import OPACUS
from torch import Tensor, nn
from variants import Dpft, Task, Variant

from dpft.models.losses import classification_loss
from dpft.per_sample.capture import trainable
from dpft.per_sample.oracle import clipped_sum, per_example_gradients

# Relative, on the norm of each parameter's clipped sum. bfloat16 keeps 8 bits, so one rounding is 4e-3.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
# A parameter with less of the whole gradient than this is held to the whole: a key's bias has gradient zero in exact
# arithmetic, and any rounding is infinitely far from it.
_SHARE = 1e-2
_NUMBERS = 2e8  # of the gradients of all records, which lie in memory several times


class DisagreementError(Exception):
    """Variants would be timed that do not compute the same."""


@dataclass(frozen=True)
class Truth:
    """Gradients [B, *shape] of each record alone, and two clips to compare under.

    ``half`` clips about half of the records, ``none`` none of them: there the ordinary one must agree too."""

    gradients: Mapping[str, Tensor]
    half: float
    none: float


def truth(task: Task) -> Truth:
    """One record at a time, its matrix products in the task's own type."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with task.autocast():
            return classification_loss(model, batch)

    gradients = per_example_gradients(task.build(), loss, task.collate(task.examples))
    norms = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    return Truth(gradients, half=float(norms.median()), none=2 * float(norms.max()))


def check(task: Task, kinds: tuple[type[Variant], ...]) -> tuple[dict[str, float], dict[str, str]]:
    """The largest relative difference of each variant, and the error of each that can't run at all.

    Raises :class:`DisagreementError` for one that runs and computes something else."""
    task = _few(task)
    known = truth(task)
    differences: dict[str, float] = {}
    failed: dict[str, str] = {}
    for kind in kinds:
        try:
            differences[kind.name] = max(_difference(task, kind, known, clip) for clip in _clips(kind, known))
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            failed[kind.name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return differences, failed


def _few(task: Task) -> Task:
    """The task on as many of its records as gradients of the whole trained set leave room for."""
    coordinates = sum(p.numel() for p in trainable(task.build()).values())
    examples = task.examples[: max(4, int(_NUMBERS / coordinates))]
    return replace(task, examples=examples, physical=min(task.physical, len(examples)))


def _clips(kind: type[Variant], known: Truth) -> list[float]:
    return [known.half, known.none] if kind in (Dpft, *OPACUS) else [known.none]


def _difference(task: Task, kind: type[Variant], known: Truth, clip: float) -> float:
    """Largest relative difference over the parameters between the variant's clipped sum and the truth."""
    found, bound = released(task, kind, clip)
    expected = clipped_sum(known.gradients, bound)
    worst = 0.0
    whole = torch.stack([right.norm() for right in expected.values()]).norm()
    for name, right in expected.items():
        relative = float((found[name] - right).norm() / torch.maximum(right.norm(), _SHARE * whole))
        if not relative <= TOLERANCE[task.compute]:
            raise DisagreementError(
                f"The clipped sum of {kind.name} differs from that of one record at a time by {relative:.2g} "
                f"in {name} (clip {clip:.3g}); at most {TOLERANCE[task.compute]:g} is allowed. "
                "Nothing was timed."
            )
        worst = max(worst, relative)
    return worst


def released(task: Task, kind: type[Variant], clip: float) -> tuple[dict[str, Tensor], float]:
    """The sum of clipped gradients, read off one noiseless step of SGD at rate 1, and what it clipped to."""
    variant = kind(replace(task, clip=clip, noise=False, plain_sgd=True))
    try:
        before = {name: p.detach().double() for name, p in trainable(variant.model).items()}
        variant.step()
        after = trainable(variant.model)
        size = len(task.examples)
        # HF peft's names have the adapter's own in them.
        sums = {
            name.replace(".default.", "."): (p - after[name].detach().double()) * size for name, p in before.items()
        }
        return sums, variant.bound()
    finally:
        variant.close()
