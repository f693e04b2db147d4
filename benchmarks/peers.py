"""Opacus, as its users drive it: with dpft's modules of a method, or with those of HF peft.

Its ``BatchMemoryManager`` cuts a logical batch into pieces of so many records, in the order of the loader.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from variants import Dpft, Ordinary, OrdinaryLoader, Task, Variant, without_dropout

from dpft.models.classifier import TextClassifier
from dpft.peft.inject import replace_module
from dpft.peft.lora import LoRALinear


class OpacusHooks(Variant):
    """Opacus with per-example gradients from hooks."""

    name, mode = "opacus hooks", "hooks"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        without_dropout(self.model)
        size = len(task.examples)
        loader: Any = DataLoader(task.examples, batch_size=size, collate_fn=task.collate)  # type: ignore[arg-type]
        made = self._make_private(loader)
        self.wrapped, self.optimizer, loader = made[0], made[1], made[-1]
        self._criterion = made[2] if self.mode == "ghost" else nn.functional.cross_entropy
        from opacus.utils.batch_memory_manager import BatchMemoryManager

        self._manager = BatchMemoryManager(
            data_loader=loader,
            max_physical_batch_size=task.physical,
            optimizer=self.optimizer,
        )
        self._loader = self._manager.__enter__()

    def _make_private(self, loader: DataLoader[Any]) -> Any:
        from opacus import PrivacyEngine

        return PrivacyEngine().make_private(
            module=self.model,
            optimizer=self.optimizer,
            criterion=nn.CrossEntropyLoss(),
            data_loader=loader,
            noise_multiplier=self.task.noise_multiplier if self.task.noise else 0.0,
            max_grad_norm=self.task.clip,
            grad_sample_mode=self.mode,
        )

    def step(self) -> None:
        for batch in self._loader:
            self.optimizer.zero_grad()
            inputs = {name: t for name, t in batch.items() if name != "labels"}
            with self.task.autocast():
                logits = self.wrapped(**inputs)
            self._criterion(logits.float(), batch["labels"]).backward()
            self.optimizer.step()


class OpacusGhost(OpacusHooks):
    """Opacus with ghost clipping: norms without gradients, then a second backward pass."""

    name, mode = "opacus ghost", "ghost"


class OpacusPeftHooks(OpacusHooks):
    """The same on HF peft's own LoRA modules, of the same initial values."""

    name = "opacus hooks, HF peft"

    def build(self) -> TextClassifier:
        return with_hf_peft(super().build())


class OpacusPeftGhost(OpacusGhost):
    """The same on HF peft's own LoRA modules, of the same initial values."""

    name = "opacus ghost, HF peft"

    def build(self) -> TextClassifier:
        return with_hf_peft(super().build())


def with_hf_peft(model: TextClassifier) -> TextClassifier:
    """``model`` with peft's LoRA in the place of dpft's, in values and training the same; refuses other methods."""
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    found = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    if not found:
        raise ValueError("only LoRA has a counterpart in HF peft here")
    for name, ours in found.items():
        config = LoraConfig(r=ours.rank, lora_alpha=round(ours.scaling * ours.rank), init_lora_weights=False)
        theirs = Linear(ours.base_layer, "default", config, r=ours.rank, lora_alpha=config.lora_alpha)
        with torch.no_grad():
            for factor in ("lora_A", "lora_B"):
                getattr(theirs, factor)["default"].weight.copy_(getattr(ours, factor).weight)
        replace_module(model, name, theirs)
    return model


MICRO: tuple[type[Variant], ...] = (Ordinary, Dpft, OpacusHooks, OpacusGhost)
LOGICAL: tuple[type[Variant], ...] = (
    OrdinaryLoader, Ordinary, Dpft, OpacusHooks, OpacusGhost, OpacusPeftHooks, OpacusPeftGhost,
)  # fmt: skip
OPACUS: tuple[type[Variant], ...] = (OpacusHooks, OpacusGhost, OpacusPeftHooks, OpacusPeftGhost)
BASELINES: tuple[type[Variant], ...] = (OrdinaryLoader, Ordinary)
