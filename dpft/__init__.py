"""dpft: differentially private fine-tuning of a small set of added parameters.

Names are imported on first use, so that ``import dpft`` and ``dpft --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpft import per_sample as per_sample
    from dpft.adapter import load as load
    from dpft.adapter import save_adapter as save_adapter
    from dpft.engine.engine import PrivateEngine as PrivateEngine
    from dpft.engine.plan import Plan as Plan
    from dpft.engine.plan import plan as plan
    from dpft.peft.attach import attach as attach
    from dpft.peft.lora import LoRA as LoRA

_HOME = {
    "LoRA": "dpft.peft.lora",
    "Plan": "dpft.engine.plan",
    "PrivateEngine": "dpft.engine.engine",
    "attach": "dpft.peft.attach",
    "load": "dpft.adapter",
    "plan": "dpft.engine.plan",
    "save_adapter": "dpft.adapter",
}

__all__ = ["LoRA", "Plan", "PrivateEngine", "__version__", "attach", "load", "per_sample", "plan", "save_adapter"]


def __getattr__(name: str) -> Any:
    if name == "per_sample":
        return importlib.import_module("dpft.per_sample")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dpft' has no attribute {name!r}")
