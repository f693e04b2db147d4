"""Filling a cache: every record through the frozen modules once, among records of its own length.

No padding and no batch statistics, so that a record's outputs depend on its neighbours in nothing but which kernel a
shape gets: rounding, as in training itself.

A record's rows are those of its tokens; of an encoder and a decoder those of its own tokens and then of its target's,
the narrower ones with zeros behind them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from dpft.cache.replay import Cut, Recorded, Replay
from dpft.cache.store import Write
from dpft.engine.guard import frozen_digest
from dpft.engine.microbatch import Collate
from dpft.per_sample.batches import to_device
from dpft.per_sample.oracle import Loss


def fill(
    write: Write, replay: Replay, loss: Loss, examples: Sequence[Any], costs: Sequence[int],
    tokens: Sequence[tuple[int, ...]], collate: Collate, budget: int,
) -> None:  # fmt: skip
    """Run the model on every example and write what its points return: rows for each of its ``tokens``, stream by
    stream. ``costs`` are what the examples take of ``budget``, which bounds a group of alike ones."""
    device = next(replay.model.parameters()).device
    for group in runs([(cost, *rows) for cost, rows in zip(costs, tokens, strict=True)], budget):
        batch = to_device(collate([examples[i] for i in group]), device)
        recorded = replay.record(loss, batch)
        for record, rows in zip(group, in_one(recorded, replay.cut), strict=True):
            write(record, rows)


def runs(sizes: Sequence[tuple[int, ...]], budget: int) -> Iterator[list[int]]:
    """Positions in groups of the same size, of which the first number is the cost: at most ``budget`` in a group. The
    most costly come first.

    >>> list(runs([(2,), (3,), (2,), (2,)], 4))
    [[1], [0, 2], [3]]
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, size in enumerate(sizes):
        alike.setdefault(size, []).append(i)
    for size, same in sorted(alike.items(), key=lambda item: item[0], reverse=True):
        step = max(1, budget // max(1, size[0]))
        yield from (same[i : i + step] for i in range(0, len(same), step))


def in_one(recorded: Recorded, cut: Cut) -> Tensor:
    """All streams' outputs as rows of the cut's width: [B, T + S, W] from [B, T, W] and [B, S, V]."""
    parts = [t if t.dim() == 3 else t.unsqueeze(1) for t in recorded.values()]
    return torch.cat([F.pad(part, (0, cut.width - part.shape[-1])) for part in parts], dim=1)


def apart(rows: Tensor, tokens: Sequence[int], cut: Cut) -> dict[str, Tensor]:
    """The streams in ``rows`` [B, T + S, W] again, ``tokens`` being T and S."""
    parts: tuple[Tensor, ...] = torch.split(rows, list(tokens), dim=1)
    return {stream: part[..., :width] for (stream, width), part in zip(cut.widths.items(), parts, strict=True)}


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
