"""Lines of JSON that a run leaves behind: public metrics, and the private diary of its steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpft.engine.accumulate import UnreleasedStats


def append_line(path: Path, value: dict[str, Any], *, private: bool = False) -> None:
    """Append one JSON object. ``private`` creates the file with mode 0600."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")


def private_stats(path: Path) -> Callable[[UnreleasedStats], None]:
    """A diary of losses, norms and clip fractions. All of it is private: it is computed without noise."""

    def write(stats: UnreleasedStats) -> None:
        norms = stats.sq_norms.sqrt()
        finite = norms.isfinite()
        line: dict[str, Any] = {"examples": len(norms), "non_finite": int((~finite).sum())}
        if bool(finite.any()):
            losses = stats.losses[stats.losses.isfinite()]
            line |= {
                "loss": float(losses.mean()) if len(losses) else None,
                "norm_median": float(norms[finite].median()),
                "clip_fraction": float((norms[finite] > stats.bound).float().mean()),
            }
        append_line(path, line, private=True)

    return write
