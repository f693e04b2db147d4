"""The clipped sum over one logical batch, micro-batch by micro-batch, in memory that does not grow with it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from dpft.config.privacy_section import Clipping
from dpft.engine.clipping import clipped_sum, scaled
from dpft.engine.collect import collect
from dpft.engine.microbatch import LogicalBatch, cut, narrow_on
from dpft.engine.neighbours import Names, joined
from dpft.engine.token_budget import Asked, TokenBudget
from dpft.errors import TrainingError
from dpft.per_sample import Dense, Rows, Uses
from dpft.per_sample.batches import to_device
from dpft.per_sample.memory import out_of_memory
from dpft.per_sample.oracle import Loss

Piece = tuple[dict[Names, Dense | Rows], Tensor, Tensor]  # clipped sums, squared norms, losses of one micro-batch


@dataclass(frozen=True)
class UnreleasedStats:
    """What one logical batch looked like from inside. PRIVATE: a function of the records, outside the guarantee.

    ``sq_norms`` [B] squared per-example norms before clipping to ``bound``, ``losses`` [B]."""

    losses: Tensor
    sq_norms: Tensor
    bound: float


@dataclass
class Accumulator:
    """Sums per-example gradients clipped to ``bound`` into one flat float64 vector.

    ``token_budget`` is the size of a micro-batch (examples times longest), "auto" for one that is found; ``budget``
    is what has become of it. It decides speed and memory, never the result. ``compute`` is the type of the model's
    matrix products; norms, factors and sums are float32 or wider whatever it is. ``uses`` is what the preflight learnt.
    ``clipping`` is the plan's; ``scale`` multiplies every gradient, coordinate by coordinate, before its norm is taken,
    so the sum is that of the scaled gradients."""

    model: nn.Module
    loss: Loss
    params: Mapping[str, nn.Parameter]
    bound: float
    token_budget: Asked
    compute: torch.dtype = torch.float32
    uses: Uses | None = None
    clipping: Clipping = "flat"
    scale: Mapping[str, Tensor] | None = None
    budget: TokenBudget = field(init=False)
    _starts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.budget = TokenBudget(self.token_budget, self.device.type)
        starts = accumulate((p.numel() for p in self.params.values()), initial=0)
        self._starts = dict(zip(self.params, starts, strict=False))

    def sum(self, batch: LogicalBatch) -> tuple[Tensor, UnreleasedStats]:
        """[d] float64, parameters in order; an empty batch gives zeros."""
        size = sum(p.numel() for p in self.params.values())
        total = torch.zeros(size, dtype=torch.float64, device=self.device)
        stats, done = torch.zeros(2, len(batch.examples), device=self.device), 0
        for sums, sq, values in self._pieces(batch):
            for names, part in sums.items():
                part.add_to(self.place(total, names))
            stats[0, done : done + len(sq)], stats[1, done : done + len(sq)] = values, sq
            done += len(sq)
            sums.clear()  # the next micro-batch needs the room
        losses, norms = stats.cpu()
        return total, UnreleasedStats(losses, norms, self.bound)

    def shaped(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector [d] as float32 tensors of the parameters' shapes, where they are."""
        return {name: part.to(self.device, torch.float32) for name, part in views(flat, self.params).items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    def place(self, total: Tensor, names: Names) -> Tensor:
        """Where in the vector these parameters' coordinates are: one parameter's in its shape, several one by one."""
        start, size = self._starts[names[0]], sum(self.params[name].numel() for name in names)
        place = total[start : start + size]
        return place.view(self.params[names[0]].shape) if len(names) == 1 else place

    def _pieces(self, batch: LogicalBatch) -> Iterator[Piece]:
        lengths = [batch.length(e) for e in batch.examples]
        waiting = self._cut(range(len(lengths)), lengths)
        while waiting:
            start, piece = time.perf_counter(), waiting[0]
            try:
                yield self._one(batch, piece)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                waiting = self._smaller(waiting, lengths, error)
                continue
            waiting = waiting[1:]
            # A GPU may not be done with the sums yet, but with all that comes before them: clipping asks for the norms.
            if self.budget.took(len(piece) * lengths[piece[0]], time.perf_counter() - start):
                waiting = self._again(waiting, lengths)

    def _one(self, batch: LogicalBatch, piece: list[int]) -> Piece:
        tensors = to_device(batch.collate([batch.examples[i] for i in piece]), self.device)
        grads, losses = collect(
            self.model, self.loss, tensors, expected=len(piece), uses=self.uses, compute=self.compute
        )
        if not len(grads):
            return {}, torch.zeros(len(piece), device=self.device), losses
        forms = dict(grads) if self.scale is None else scaled(grads, self.scale)
        del grads  # which would hold every form until the last sum is made
        sums, sq = clipped_sum(joined(forms, self.params), self.bound, self.clipping)
        return sums, sq, losses

    def _smaller(self, waiting: list[list[int]], lengths: list[int], error: BaseException) -> list[list[int]]:
        """Out of memory: half the budget for what is left of the *same* logical batch. No example is drawn
        again or left out, and noise is still drawn once."""
        if max(len(piece) for piece in waiting) == 1:
            raise TrainingError(
                "A single example does not fit in memory: shorten data.max_length, set train.recompute or use a "
                "smaller model. The step is charged."
            ) from error
        self.budget.halve()
        return self._again(waiting, lengths)

    def _again(self, waiting: list[list[int]], lengths: list[int]) -> list[list[int]]:
        """What is left, cut for another budget."""
        return self._cut((i for piece in waiting for i in piece), lengths)

    def _cut(self, positions: Iterable[int], lengths: Sequence[int]) -> list[list[int]]:
        return cut(positions, lengths, self.budget.tokens, narrow=narrow_on(self.device.type))


def views(flat: Tensor, params: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A flat vector [d] cut into the parameters' shapes, in their order; no copies."""
    parts = torch.split(flat, [p.numel() for p in params.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}
