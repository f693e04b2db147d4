"""dpft: differentially private fine-tuning of a small set of added parameters.

Names are imported on first use, so that ``import dpft`` and ``dpft --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dpft.interop.register import install as _know_peft

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpft import per_sample as per_sample
    from dpft.adapter import load as load
    from dpft.adapter import save_adapter as save_adapter
    from dpft.engine.engine import PrivateEngine as PrivateEngine
    from dpft.engine.plan import Plan as Plan
    from dpft.engine.plan import plan as plan
    from dpft.models import losses as losses
    from dpft.peft.attach import attach as attach
    from dpft.peft.attempt import Attempt as Attempt
    from dpft.peft.bitfit import BitFit as BitFit
    from dpft.peft.bottleneck import Adapter as Adapter
    from dpft.peft.compacter import Compacter as Compacter
    from dpft.peft.dsee import DSEE as DSEE
    from dpft.peft.full import Full as Full
    from dpft.peft.head_only import HeadOnly as HeadOnly
    from dpft.peft.ia3 import IA3 as IA3
    from dpft.peft.ladder import Ladder as Ladder
    from dpft.peft.last_layers import LastLayers as LastLayers
    from dpft.peft.lora import LoRA as LoRA
    from dpft.peft.merge import merge as merge
    from dpft.peft.new_tokens import TokenRows as TokenRows
    from dpft.peft.norms import Norms as Norms
    from dpft.peft.prefix import PrefixTuning as PrefixTuning
    from dpft.peft.prompt import PromptTuning as PromptTuning
    from dpft.peft.prune import prune as prune
    from dpft.peft.raft import RAFT as RAFT
    from dpft.peft.registry import preset as preset
    from dpft.peft.sparse_adapter import SparseAdapter as SparseAdapter
    from dpft.peft.together import Together as Together

_HOME = {
    "Adapter": "dpft.peft.bottleneck",
    "Attempt": "dpft.peft.attempt",
    "BitFit": "dpft.peft.bitfit",
    "Compacter": "dpft.peft.compacter",
    "DSEE": "dpft.peft.dsee",
    "Full": "dpft.peft.full",
    "HeadOnly": "dpft.peft.head_only",
    "IA3": "dpft.peft.ia3",
    "Ladder": "dpft.peft.ladder",
    "LastLayers": "dpft.peft.last_layers",
    "LoRA": "dpft.peft.lora",
    "Norms": "dpft.peft.norms",
    "Plan": "dpft.engine.plan",
    "PrefixTuning": "dpft.peft.prefix",
    "PrivateEngine": "dpft.engine.engine",
    "PromptTuning": "dpft.peft.prompt",
    "RAFT": "dpft.peft.raft",
    "SparseAdapter": "dpft.peft.sparse_adapter",
    "Together": "dpft.peft.together",
    "TokenRows": "dpft.peft.new_tokens",
    "attach": "dpft.peft.attach",
    "load": "dpft.adapter",
    "merge": "dpft.peft.merge",
    "plan": "dpft.engine.plan",
    "preset": "dpft.peft.registry",
    "prune": "dpft.peft.prune",
    "save_adapter": "dpft.adapter",
}

_MODULES = {"losses": "dpft.models.losses", "per_sample": "dpft.per_sample"}

__all__ = [
    "DSEE",
    "IA3",
    "RAFT",
    "Adapter",
    "Attempt",
    "BitFit",
    "Compacter",
    "Full",
    "HeadOnly",
    "Ladder",
    "LastLayers",
    "LoRA",
    "Norms",
    "Plan",
    "PrefixTuning",
    "PrivateEngine",
    "PromptTuning",
    "SparseAdapter",
    "Together",
    "TokenRows",
    "__version__",
    "attach",
    "load",
    "losses",
    "merge",
    "per_sample",
    "plan",
    "preset",
    "prune",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dpft' has no attribute {name!r}")


_know_peft()  # peft, once loaded, reads adapters of every method
