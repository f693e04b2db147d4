"""Watches over what may move: the declared trainable set, all of it, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dpft.errors import InputError, PrivacyError, TrainingError
from dpft.per_sample.capture import trainable


class Guard:
    """Remembers the trainable set and the frozen tensors' contents when a model is handed over."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self.params = trainable(model)
        if not self.params:
            raise InputError("Expected a model with trainable parameters, found none; call dpft.attach first.")
        self._check_optimizer(optimizer)
        self._check_modules()
        self._frozen = frozen_digest(model)
        self._before = {name: p.detach().clone() for name, p in self.params.items()}

    @property
    def coordinates(self) -> int:
        return sum(p.numel() for p in self.params.values())

    def _check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InputError("Expected an optimizer that takes one gradient a step; LBFGS evaluates the loss again.")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        absent = [name for name, p in self.params.items() if id(p) not in held]
        if absent:
            raise InputError(f"Expected the optimizer to hold every trainable parameter; it lacks {_some(absent)}.")
        extra = held - {id(p) for p in self.params.values()}
        if any(p.requires_grad for group in optimizer.param_groups for p in group["params"] if id(p) in extra):
            raise InputError(
                "Expected the optimizer to hold the model's trainable parameters alone, found others that require "
                "a gradient: they would train outside the guarantee. Build it from what dpft.attach left trainable."
            )

    def _check_modules(self) -> None:
        for name, module in self._model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise PrivacyError(
                    f"{name} computes statistics over the batch, which couples examples. Put it in eval mode "
                    "or replace it by LayerNorm or GroupNorm."
                )

    def check_unchanged_set(self) -> None:
        """The trainable parameters are the very same objects as at the start; cheap, called at every step."""
        now = trainable(self._model)
        if now.keys() != self.params.keys() or any(now[name] is not p for name, p in self.params.items()):
            changed = sorted(now.keys() ^ self.params.keys()) or ["a parameter that was replaced"]
            raise PrivacyError(
                f"The trainable set changed after the engine was built ({_some(changed)}): what would be noised is "
                "no longer what trains. Build the engine after the last change to the model."
            )

    def check_finite(self) -> None:
        extremes = [torch.stack(torch.aminmax(p.detach())) for p in self.params.values() if p.numel()]
        if extremes and not bool(torch.isfinite(torch.stack(extremes)).all()):  # a GPU is asked once
            bad = [name for name, p in self.params.items() if not bool(torch.isfinite(p).all())]
            raise TrainingError(
                f"The update left non-finite values in {_some(bad)}; the step is charged. Lower the learning rate "
                "and resume from the last checkpoint."
            )

    def check_first_step(self) -> None:
        """After the first step: every trained tensor moved, and nothing else did."""
        still = [name for name, p in self.params.items() if torch.equal(p, self._before[name])]
        if still:
            raise PrivacyError(
                f"Expected every trained tensor to move at the first step; {_some(still)} did not. "
                "Give it a learning rate, or freeze it so that the report does not claim it."
            )
        self._before = {}
        self.check_frozen()

    def check_frozen(self) -> None:
        """No frozen parameter and no buffer changed since the start."""
        if frozen_digest(self._model) != self._frozen:
            raise PrivacyError(
                "A frozen parameter or a buffer changed during training: it carries private data outside the "
                "clipped and noised update. Freeze the module that writes it (BatchNorm statistics, say)."
            )


def _others(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    yield from model.named_buffers()


def frozen_digest(model: nn.Module) -> str:
    """Hash of the bytes of everything in the model that does not train."""
    digest = hashlib.blake2b()
    for name, tensor in _others(model):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
