"""Parameter-efficient methods: one file a method."""

from dpft.peft.attach import attach
from dpft.peft.lora import LoRA

__all__ = ["LoRA", "attach"]
