"""Filling a cache: every record through the frozen modules once, among records of its own length.

No padding and no batch statistics, so that a record's outputs depend on its neighbours in nothing but which kernel a
shape gets: rounding, as in training itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from dpft.cache.replay import Cut, Replay
from dpft.cache.store import Write
from dpft.engine.guard import frozen_digest
from dpft.engine.microbatch import Collate
from dpft.per_sample.batches import to_device
from dpft.per_sample.oracle import Loss


def fill(
    write: Write, replay: Replay, loss: Loss, examples: Sequence[Any], lengths: NDArray[np.int64], collate: Collate,
    budget: int,
) -> None:  # fmt: skip
    """Run the model on every example and write what its points return. ``lengths`` [N] are the examples' costs, by
    which they are grouped; ``budget`` is the cost of a group."""
    device = next(replay.model.parameters()).device
    for group in runs(lengths, budget):
        batch = to_device(collate([examples[i] for i in group]), device)
        recorded = replay.record(loss, batch)
        for record, rows in zip(group, recorded.unsqueeze(1) if replay.cut.tokens == 0 else recorded, strict=True):
            write(record, rows)


def runs(lengths: NDArray[np.int64], budget: int) -> Iterator[list[int]]:
    """Positions in groups of one length, each of at most ``budget`` together, longest first.

    >>> list(runs(np.array([2, 3, 2, 2]), 4))
    [[1], [0, 2], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    for length in dict.fromkeys(lengths[order].tolist()):
        same = order[lengths[order] == length].tolist()
        step = max(1, budget // max(1, length))
        yield from (same[i : i + step] for i in range(0, len(same), step))


def key_of(model: nn.Module, cut: Cut, compute: torch.dtype) -> str:
    """Names everything that decides what the points return, but the record: weights, structure, arithmetic.

    Trained parameters are left out: nothing at the points depends on them, as ``frozen.find`` has shown."""
    config: Any = getattr(model, "config", None)
    device = next(model.parameters()).device
    gpu = device.type == "cuda"
    described = {
        "weights": frozen_digest(model),
        "structure": repr(model),
        "config": json.loads(config.to_json_string(use_diff=False)) if config is not None else None,
        "revision": getattr(config, "_commit_hash", None),
        "attention": getattr(config, "_attn_implementation", None),
        "pooling": [getattr(model, name, None) for name in ("pooling", "feature_norm")],
        "points": [[point.place, point.width, str(point.dtype)] for point in cut.points],
        "compute": str(compute),
        "machine": torch.cuda.get_device_name(device) if gpu else torch.backends.cpu.get_cpu_capability(),
        "versions": [torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
