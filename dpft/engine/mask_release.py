"""A mask that is paid for: SparseAdapter's support from noised gradients that update nothing (arXiv 2210.04284, SNIP).

    with MaskEngine(model, method, plan, loss=loss, ledger=path) as engine:
        for batch in engine.batches(dataset, collate):
            engine.step(batch)
    rest = engine.choose()                     # the supports are set; rest is the plan of what is left to train
    with PrivateEngine(model, optimizer, rest, loss=loss, ledger=path) as private: ...

Each gradient is a step of the plan's own mechanism over the adapters' whole matrices: same sampler, clip, noise, and an
entry in the same ledger before the noise is drawn, under the run "mask". The plan's steps are those of both runs
together, so its epsilon is that of mask and training. The mask is computed from the noised gradients alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dpft.engine.accumulate import UnreleasedStats
from dpft.engine.engine import PrivateEngine
from dpft.engine.guard import Guard
from dpft.engine.keystream import Words
from dpft.engine.plan import Plan
from dpft.engine.token_budget import Asked
from dpft.errors import InputError, PrivacyError, TrainingError
from dpft.peft.sparse_adapter import SparseAdapter, prunable
from dpft.per_sample.batches import to_device
from dpft.per_sample.oracle import Loss

RUN = "mask"


class Sums(torch.optim.Optimizer):
    """Adds up the gradients that it is given and moves nothing. A checkpoint of it holds the sums, which are noised."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.grad is not None:
                kept = self.state[p]
                kept["sum"] = kept["sum"] + p.grad if kept else p.grad.clone()
                kept["count"] = kept.get("count", 0) + 1

    def mean(self, p: nn.Parameter) -> Tensor:
        """Of the gradients so far. Raises :class:`TrainingError` where there are none."""
        if not self.state[p]:
            raise TrainingError(
                "Every step that pays for the mask is charged and none of its gradients is left; start a new run."
            )
        mean: Tensor = self.state[p]["sum"] / self.state[p]["count"]
        return mean


class _Still(Guard):
    """Where nothing may move."""

    def check_first_step(self) -> None:
        self._check_still()
        self.check_frozen()

    def check_frozen(self) -> None:
        super().check_frozen()
        self._check_still()

    def _check_still(self) -> None:
        if any(not torch.equal(p, self._before[name]) for name, p in self.params.items()):
            raise PrivacyError("A weight moved while its mask was being chosen, and nothing may; start anew.")


class MaskEngine(PrivateEngine):
    """Draws ``method.mask_steps`` noised gradients of the adapters' weights in ``model``, all else frozen meanwhile.

    ``method`` is the :class:`SparseAdapter` that was attached to ``model``; its support must be whole. ``plan`` is the
    whole plan, mask and training together; the other arguments are :class:`PrivateEngine`'s.
    Errors: :class:`InputError` for a method that pays for no mask, a plan without steps left to train, and, before any
    record is read, a model that lets no gradient through to the adapters."""

    _watch = _Still

    def __init__(
        self,
        model: nn.Module,
        method: SparseAdapter,
        plan: Plan,
        *,
        loss: Loss,
        ledger: str | os.PathLike[str],
        dataset: str = "private data",
        resume: bool = False,
        token_budget: Asked = 4096,
        compute: torch.dtype = torch.float32,
        on_step: Callable[[UnreleasedStats], None] | None = None,
        words: Words | None = None,
    ) -> None:
        m = method.mask_steps if isinstance(method, SparseAdapter) else 0
        self._layers, self.rest = prunable(model), plan_of_training(plan, m)
        if any(not bool(layer.mask.all()) for layer in self._layers) or not self._layers:
            raise InputError("Expected a model with the method attached and its mask not chosen yet.")
        self._method, self._sum = method, Sums(values := [layer.values for layer in self._layers])
        self._asleep = [p for p in model.parameters() if p.requires_grad and all(p is not v for v in values)]
        _ask(self._asleep, False)
        try:
            super().__init__(
                model, self._sum, replace(plan, steps=m), loss=loss, ledger=ledger, dataset=dataset, run=RUN,
                resume=resume, token_budget=token_budget, compute=compute, on_step=on_step, words=words,
            )  # fmt: skip
        except BaseException:
            _ask(self._asleep, True)
            raise

    def preflight(self, batch: Any) -> None:
        """As ever; and that some gradient arrives at the adapters at all."""
        super().preflight(batch)
        values = [layer.values for layer in self._layers]
        with torch.enable_grad():
            total = self._loss(self.model, to_device(batch, values[0].device)).sum()
            found = torch.autograd.grad(total, values, allow_unused=True)
        if not any(g is not None and bool(g.any()) for g in found):
            raise InputError(
                "No gradient arrives at the adapters, so the mask would be one of noise alone: what stands behind them "
                "lets none through, a head that starts at zero say."
            )

    def choose(self) -> Plan:
        """Set the supports by the mean of the noised gradients; returns the plan of the training that is left.

        Closes this engine: what trains is another set from here on. Errors: :class:`PrivacyError` before the last
        step."""
        if self.steps_charged < self.plan.steps:
            raise PrivacyError(
                f"The mask is paid for by {self.plan.steps} steps; {self.steps_charged} are charged: draw the others."
            )
        self.close()
        self._method.choose(self._layers, [self._sum.mean(layer.values) for layer in self._layers])
        return self.rest

    def close(self) -> None:
        super().close()
        _ask(self._asleep, True)


def plan_of_training(plan: Plan, mask_steps: int) -> Plan:
    """What is left of ``plan`` after ``mask_steps`` of its steps; its epsilon stays that of both together.

    Raises :class:`InputError` where there is no mask to pay for, or nothing would be left."""
    if not 0 < mask_steps < plan.steps:
        raise InputError(
            f"Expected method.mask_steps={mask_steps} to be at least 1 and below the plan's {plan.steps} steps, which "
            "pay for mask and training together."
        )
    return replace(plan, steps=plan.steps - mask_steps)


def _ask(parameters: Sequence[nn.Parameter], gradient: bool) -> None:
    for p in parameters:
        p.requires_grad_(gradient)
