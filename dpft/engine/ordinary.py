"""The same training without privacy: no clipping, no noise, no ledger. For comparison, on public records.

It draws its batches as the private engine does and hands the optimizer the mean gradient of each, so that a run and
its twin differ in what privacy adds and in nothing else. Whatever it trains is NOT PRIVATE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from dpft.engine.guard import Guard
from dpft.engine.keystream import Keystream
from dpft.engine.microbatch import Collate, Length, LogicalBatch, cut, narrow_on, token_length
from dpft.engine.plan import Plan
from dpft.engine.sampler import poisson_sample
from dpft.models.precision import products_in
from dpft.models.recompute import recomputing
from dpft.per_sample.batches import to_device
from dpft.per_sample.oracle import Loss

NOT_PRIVATE = "none: trained without privacy (privacy.enabled = false)"
"""What stands in the place of the noise source."""


class OrdinaryEngine(AbstractContextManager["OrdinaryEngine"]):
    """What :class:`dpft.engine.engine.PrivateEngine` is to a training loop, for ``plan``'s sampler and steps alone.

    ``steps_charged`` counts steps done; nothing is charged anywhere."""

    noise_source, noise_is_private = NOT_PRIVATE, False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        *,
        loss: Loss,
        token_budget: int = 4096,
        compute: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.optimizer, self.plan = model, optimizer, plan
        self._loss, self._budget, self._compute = loss, token_budget, compute
        self._guard = Guard(model, optimizer)
        self._words = Keystream()
        self.steps_charged = 0

    def restored(self, step: int) -> None:
        """Go on after a checkpoint's step."""
        self.steps_charged = step

    def preflight(self, batch: Any) -> None:
        """Nothing to prove: gradients need not be per example here."""

    def batches(
        self, dataset: Sequence[Any], collate: Collate, *, length: Length = token_length
    ) -> Iterator[LogicalBatch]:
        """One Poisson batch a turn, until the plan's last step."""
        while self.steps_charged < self.plan.steps:
            self.steps_charged += 1
            drawn = poisson_sample(len(dataset), self.plan.sample_rate, self._words)
            yield LogicalBatch([dataset[i] for i in drawn], collate, length)
        self.finish()

    def step(self, batch: LogicalBatch) -> None:
        """One update by the batch's mean gradient; an empty batch has a gradient of zero."""
        lengths = [batch.length(example) for example in batch.examples]
        for p in self._guard.params.values():
            p.grad = torch.zeros_like(p)
        for piece in cut(range(len(lengths)), lengths, self._budget, narrow=narrow_on(self._device.type)):
            tensors = to_device(batch.collate([batch.examples[i] for i in piece]), self._device)
            with recomputing(self.model):
                with products_in(self._compute, self._device):
                    losses: Tensor = self._loss(self.model, tensors)
                (losses.sum() / len(lengths)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        for p in self._guard.params.values():
            p.grad = None
        self._guard.check_finite()

    def finish(self) -> None:
        """Nothing but the trained parameters has changed."""
        self._guard.check_unchanged_set()
        self._guard.check_frozen()

    def commit(self) -> None:
        """There is no ledger to write to."""

    def __exit__(self, *_: object) -> None:
        """There is no ledger to let go of."""

    @property
    def _device(self) -> torch.device:
        return next(iter(self._guard.params.values())).device
