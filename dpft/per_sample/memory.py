"""Whether an error means that memory ran out: torch has a class for it on a GPU, and none on a CPU."""

from __future__ import annotations

import torch

_ON_A_CPU = "DefaultCPUAllocator: "  # "can't allocate memory" or "not enough memory", by platform


def out_of_memory(error: BaseException) -> bool:
    """True for Python's, a GPU's and a CPU's.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _ON_A_CPU in str(error)
