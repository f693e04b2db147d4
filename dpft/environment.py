"""What the libraries beneath are told by environment variables, unless the user told them something else.

The command line does this before any of them is loaded; library users who want the same call :func:`set_defaults`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # oneDNN, torch's matrix products on a CPU, keeps a compiled product for each of the last 1,024 shapes. There are
    # many shapes in micro-batches, and what is kept splits the heap: a quarter of a run's memory. Sixteen serve the
    # blocks of one micro-batch, in the same time; none would cost a fifth more (docs/log.md).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
}


def set_defaults() -> None:
    """Set each of :data:`DEFAULTS` that is not set. Takes effect where it comes before the first matrix product."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
