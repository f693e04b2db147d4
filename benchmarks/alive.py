"""Memory of tensors alive at once: what a process's own peak hides behind code, caches and a heap in pieces."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def most_alive(step: Callable[[], None], times: int) -> float:
    """MB of tensors made in that many steps, at the moment when most of them are alive; not of what stood before.

    From torch's own record of each allocation on the CPU: the same in every run, unlike a process's peak."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for _ in range(times):
            step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    found = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return highest(size for _, size in found) / 1e6


def highest(sizes: Iterable[int]) -> int:
    """The most of a sum on its way.

    >>> highest([3, 4, -3, 2, -6])
    7
    """
    return max(accumulate(sizes), default=0)
