"""What the libraries beneath are told by environment variables, unless the user told them something else.

The command line does this before any of them is loaded; library users who want the same call :func:`set_defaults`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Matrix products on a CPU are compiled by oneDNN for each shape, and kept: the last 1,024 by oneDNN itself, and as
    # many by torch's layer above it, with the memory that each works in. There are many shapes in micro-batches: a run
    # grew by 60 MB a step and ended at twice its size. Sixteen serve the blocks of one micro-batch, in the same time;
    # none would cost a fifth more (docs/log.md).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
}


def set_defaults() -> None:
    """Set each of :data:`DEFAULTS` that is not set. Takes effect where it comes before the first matrix product."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
