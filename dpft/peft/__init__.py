"""Parameter-efficient methods: one file a method."""

from dpft.peft.attach import attach
from dpft.peft.attempt import Attempt
from dpft.peft.bitfit import BitFit
from dpft.peft.bottleneck import Adapter
from dpft.peft.compacter import Compacter
from dpft.peft.dsee import DSEE
from dpft.peft.full import Full
from dpft.peft.head_only import HeadOnly
from dpft.peft.ia3 import IA3
from dpft.peft.ladder import Ladder
from dpft.peft.last_layers import LastLayers
from dpft.peft.lora import LoRA
from dpft.peft.merge import merge
from dpft.peft.method import Method
from dpft.peft.new_tokens import TokenRows
from dpft.peft.norms import Norms
from dpft.peft.prefix import PrefixTuning
from dpft.peft.prompt import PromptTuning
from dpft.peft.raft import RAFT
from dpft.peft.sparse_adapter import SparseAdapter
from dpft.peft.together import Together

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
    "Method",
    "Norms",
    "PrefixTuning",
    "PromptTuning",
    "SparseAdapter",
    "Together",
    "TokenRows",
    "attach",
    "merge",
]
