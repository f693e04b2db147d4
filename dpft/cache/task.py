"""A run's records with their recorded outputs: the same task to the training loop, with no backbone in its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpft.cache.build import apart, fill, key_of
from dpft.cache.folder import delete
from dpft.cache.frozen import computed_in, find
from dpft.cache.replay import DECODED, RECORDED, Recorded, Replay
from dpft.cache.shared import alone, shared_place
from dpft.cache.store import DTYPES, Layout, Store, reopened, written
from dpft.config.cache_section import CacheSection
from dpft.data.load import Data
from dpft.data.tokenise import NOT_LEARNT
from dpft.engine.microbatch import token_length
from dpft.errors import InputError
from dpft.per_sample.batches import to_device
from dpft.per_sample.oracle import Loss
from dpft.task import Task

RECORD = "record"
"""An example's key for its place in the cache."""


class CachedTask:
    """``task`` with a cache in ``folder``, or in the section's own, for the training of an attached ``model`` (see
    :class:`dpft.task.Task`).

    The model is under taps until :meth:`finish`: batches made here run on the cache, all others run it whole. Raises
    :class:`InputError`, before any record is read, where the model and its method leave nothing to cache, where the
    section's own folder is no private one, and where its number type can't hold what the synthetic batch gives. That it
    can't hold a record is no error, since one record must not end a run: its gradient is not finite and counts as
    zero."""

    def __init__(
        self, section: CacheSection, task: Task, model: nn.Module, loss: Loss, folder: Path,
        compute: torch.dtype = torch.float32, budget: int = 4096,
    ) -> None:  # fmt: skip
        self._section, self._task, self._folder, self._budget = section, task, folder, budget
        self._loss = computed_in(loss, compute)
        synthetic = to_device(task.synthetic(), next(model.parameters()).device)
        cut = find(model, loss, synthetic, compute)
        self._key = key_of(model, cut, compute)
        if section.folder is not None:
            self._folder = shared_place(Path(section.folder).expanduser(), self._key, section.dtype)
        self._replay = Replay(model, cut)
        recorded = _kept_as(section.dtype, self._replay.record(self._loss, synthetic))
        self._synthetic = self._replay.batch(synthetic, recorded)
        self._store: Store | None = None

    def load(self) -> Data[Any]:
        return self._task.load()

    def inputs(self) -> dict[str, Any]:
        return self._task.inputs()

    @property
    def loss(self) -> Loss:
        return self._task.loss

    def labels(self, examples: Sequence[Any]) -> Tensor:
        return self._task.labels(examples)

    def scores(self, model: nn.Module, examples: Sequence[Any], budget: int, compute: torch.dtype) -> dict[str, float]:
        return self._task.scores(model, examples, budget, compute)

    def synthetic(self) -> dict[str, Any]:
        """The task's own synthetic batch, with recorded outputs in the number type that training will read."""
        return self._synthetic

    def examples(
        self, records: Sequence[Any], folder: Path | None = None, say: Callable[[str], None] = lambda _: None
    ) -> list[Any]:
        """One example a record. The cache is opened where it holds these very records, and computed where not."""
        examples = self._task.examples(records, folder)
        cut = self._replay.cut
        costs = [self._task.length(example) for example in examples]
        tokens = [self._tokens(example) for example in examples]
        lengths = np.array([sum(of_streams) for of_streams in tokens], dtype=np.int64)
        places = tuple(point.place for point in cut.points)
        # A decoder's outputs depend on the text to write as well, so that it counts as input.
        read = [{**e, "target": e["label"]} for e in examples] if DECODED in cut.widths else examples
        layout = Layout(self._key, places, cut.width, self._section.dtype, lengths, read)
        with alone(self._folder) if self._section.folder else nullcontext():
            self._store = reopened(self._folder, layout)
            if self._store is None:
                say("computing once what stays frozen")
                self._store = written(self._folder, layout, lambda write: fill(
                    write, self._replay, self._loss, examples, costs, tokens, self._task.collate, self._budget
                ))  # fmt: skip
        short = cut.tokens == 0
        return [{**({"label": e["label"]} if short else e), RECORD: i} for i, e in enumerate(examples)]

    def length(self, example: Any) -> int:
        """A record that is one vector costs as one token."""
        return 1 if self._replay.cut.tokens == 0 else self._task.length(example)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The task's batch with what was recorded of its examples, or that alone."""
        assert self._store is not None  # examples come from examples()
        records = [example[RECORD] for example in examples]
        if self._replay.cut.tokens == 0:
            labels, rows = self._task.labels(examples), self._store.gather(records, None)
            return self._replay.batch({"labels": labels}, {RECORDED: rows.squeeze(1)})
        batch = self._task.collate(list(examples))
        if self._replay.cut.tokens is not None:
            return self._replay.batch(batch, {RECORDED: self._store.gather(records, None)})
        own = {RECORDED: batch["attention_mask"] != 0, DECODED: batch["labels"] != NOT_LEARNT}
        masks = [own[stream] for stream in self._replay.cut.widths]
        rows = self._store.gather(records, torch.cat(masks, dim=1))
        return self._replay.batch(batch, apart(rows, [mask.shape[1] for mask in masks], self._replay.cut))

    def finish(self) -> None:
        """The run is over: the model is whole again, and the cache deleted unless it is to stay."""
        self._store = None
        self._replay.remove()
        if not self._section.keep:
            delete(self._folder)

    def _tokens(self, example: Any) -> tuple[int, ...]:
        """How many a record has at the points, stream by stream."""
        if self._replay.cut.tokens is not None:
            return (max(1, self._replay.cut.tokens),)
        own = {RECORDED: token_length(example), DECODED: np.size(example["label"])}
        return tuple(own[stream] for stream in self._replay.cut.widths)


def _kept_as(dtype: str, recorded: Recorded) -> dict[str, Tensor]:
    """The synthetic batch's outputs as the cache would hold them: public, so their range may be spoken of."""
    kept = {stream: t.to(DTYPES[dtype]) for stream, t in recorded.items()}
    if not all(bool(torch.isfinite(t).all()) for t in kept.values()):
        raise InputError(
            f"On synthetic records a frozen output is beyond what cache.dtype={dtype!r} can hold, or not a number at "
            'all; use "bfloat16" or "float32", or leave [cache] out.'
        )
    return kept
