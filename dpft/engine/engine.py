"""The private step: draw, reserve, clip, sum, noise, update. Read top to bottom."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from dpft_accounting import Bound, BudgetExceeded, Ledger
from torch import Tensor, nn

from dpft.engine.accumulate import Accumulator, UnreleasedStats, views
from dpft.engine.guard import Guard
from dpft.engine.keystream import Keystream, Words
from dpft.engine.microbatch import Collate, Length, LogicalBatch, token_length
from dpft.engine.noise import GriddedGaussian, drawn_beside
from dpft.engine.plan import Plan
from dpft.engine.preflight import preflight
from dpft.engine.sampler import poisson_sample
from dpft.engine.scaling import PrivatisedScale
from dpft.engine.synthetic import like_one_record
from dpft.engine.token_budget import Asked
from dpft.errors import InputError, PrivacyError
from dpft.per_sample.batches import to_device
from dpft.per_sample.oracle import Loss


class PrivateEngine(AbstractContextManager["PrivateEngine"]):
    """DP-SGD over the trainable parameters of ``model``, exactly as ``plan`` says.

    ``optimizer`` is any torch optimizer over exactly those parameters; it only ever sees the noised mean
    gradient. ``loss(model, batch)`` returns one loss per example. ``ledger`` is the path of the ledger, to
    which every step is written before its noise is drawn; ``dataset`` and ``run`` name the data set and this
    training in it. With ``resume`` a run that the ledger already holds is continued: its charged steps stay
    charged. ``token_budget`` is the size of a micro-batch in tokens, padding included, "auto" to find a fast one
    within the first steps; ``compute`` = bfloat16 runs the model's matrix products in that type. ``scale`` multiplies
    gradients before they are clipped, and is taken out again after the noise; it learns from noised gradients alone.
    ``on_step`` receives figures that are private and must stay so.

    Guarantee: the sequence of all parameter values after every step is (epsilon, delta)-DP as the plan
    certifies, for its unit and adjacency. Not covered: the timing of steps, and whatever the caller derives
    from the records elsewhere.
    """

    _watch: type[Guard] = Guard

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        *,
        loss: Loss,
        ledger: str | os.PathLike[str],
        dataset: str = "private data",
        run: str = "train",
        resume: bool = False,
        token_budget: Asked = 4096,
        compute: torch.dtype = torch.float32,
        scale: PrivatisedScale | None = None,
        on_step: Callable[[UnreleasedStats], None] | None = None,
        words: Words | None = None,
    ) -> None:
        if compute not in (torch.float32, torch.bfloat16):
            raise InputError(f"Expected compute={compute} to be torch.float32 or torch.bfloat16.")
        self.model, self.optimizer, self.plan = model, optimizer, plan
        self._loss, self._on_step, self._scale = loss, on_step, scale
        self._guard = self._watch(model, optimizer)
        self._noise = GriddedGaussian(plan.clip, plan.noise_multiplier, self._guard.coordinates, compute)
        self._sums = Accumulator(
            model, loss, self._guard.params, self._noise.bound, token_budget, compute, clipping=plan.clipping
        )
        self._words = Keystream() if words is None else words
        self._current: LogicalBatch | None = None
        self._steps_here = 0
        Path(ledger).parent.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger.open(ledger, dataset_id=dataset, unit=plan.unit, budget=plan.budget)
        try:
            if run in self._ledger.runs() and not resume:
                raise InputError(
                    f"The ledger {os.fspath(ledger)} already holds the run {run!r}. Resume it (resume=True), "
                    "give this run another name, or use another ledger."
                )
            self._run = self._ledger.run(run, plan.mechanism)
        except BaseException:
            self._ledger.close()
            raise

    @property
    def steps_charged(self) -> int:
        """Steps reserved in the ledger so far, over all sessions; public."""
        return self._run.charged

    @property
    def noise_source(self) -> str:
        """Where the noise comes from, in words for the privacy statement."""
        return self._words.name

    @property
    def noise_is_private(self) -> bool:
        """False for a source that can be replayed: then nothing this engine trains is private."""
        return self._words.private

    def epsilon(self) -> Bound:
        """What has been spent so far, from the ledger."""
        return self._ledger.spent(self.plan.delta)

    def preflight(self, batch: Any) -> None:
        """Prove on a synthetic batch that gradients are per example. ``batches`` does it where you don't, on a batch
        made like the first record: of its shape, the second example shorter."""
        self._sums.uses = preflight(self.model, self._loss, to_device(batch, self._sums.device), self._sums.compute)

    def batches(
        self, dataset: Sequence[Any], collate: Collate, *, length: Length = token_length
    ) -> Iterator[LogicalBatch]:
        """One logical Poisson batch a turn, until the plan's last step.

        ``dataset`` has a length and gives one example an index; ``collate`` turns a list of examples into
        tensors with the examples first; ``length`` is an example's cost against the token budget. A batch is
        charged when it is drawn: leaving the loop early loses that step, never its record."""
        records = len(dataset)
        if self.plan.unit.n_public is not None and records != self.plan.unit.n_public:
            raise InputError(
                f"The plan is for examples={self.plan.unit.n_public}, the data set holds {records}. Under "
                "zero-out adjacency that number is public: plan for it, or give sample_rate instead."
            )
        if self._run.remaining == 0:
            raise BudgetExceeded(
                f"All {self.plan.steps} planned steps are charged; one more would exceed the budget. "
                "Nothing was changed."
            )
        if records and self._sums.uses is None:
            self.preflight(like_one_record(dataset[0], collate, self.model))
        while self._run.remaining > 0:
            self._run.reserve(1)
            drawn = poisson_sample(records, self.plan.sample_rate, self._words)
            self._current = LogicalBatch([dataset[i] for i in drawn], collate, length)
            yield self._current
        self.finish()

    def step(self, batch: LogicalBatch) -> None:
        """Clip, sum, noise and update, once, for a batch from :meth:`batches`."""
        if batch is not self._current or batch.used:
            raise PrivacyError(
                "Expected the batch that batches() drew last, not yet stepped on: every noisy update needs a "
                "step of its own in the ledger. Take the next batch from the loop."
            )
        batch.used = True
        self._guard.check_unchanged_set()
        if self._scale is not None:
            self._sums.scale = self._sums.shaped(self._scale.scale)
        noise = self._noise.noise(self._words)
        with drawn_beside(noise, idle=self._sums.device.type != "cpu"):
            total, stats = self._sums.sum(batch)
        mean = self._noise.release(total, noise).div_(self.plan.expected_batch_size)
        del total  # on a GPU a vector of all coordinates
        self._update(mean if self._scale is None else self._scale.undo(mean))
        self._run.step()
        self._steps_here += 1
        if self._steps_here == 1:
            self._guard.check_first_step()
        if self._on_step is not None:
            self._on_step(stats)

    def close(self) -> None:
        """Commit the executed steps and let go of the ledger. Steps reserved and not executed stay charged."""
        self._run.close()
        self._ledger.close()

    def finish(self) -> None:
        """Last checks before anything is released: nothing but the trained parameters has changed.

        A loop over :meth:`batches` that runs to its end does this by itself."""
        self._guard.check_unchanged_set()
        self._guard.check_frozen()
        self._run.commit()

    def commit(self) -> None:
        """Write the executed steps to the ledger; call it with every checkpoint."""
        self._run.commit()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _update(self, mean: Tensor) -> None:
        """Hand the noised mean gradient [d] to the optimizer, and take it back so that it can't be used twice."""
        for (_, p), g in zip(self._guard.params.items(), views(mean, self._guard.params).values(), strict=True):
            p.grad = g.to(device=p.device, dtype=p.dtype)
        self.optimizer.step()
        for p in self._guard.params.values():
            p.grad = None
        self._guard.check_finite()
