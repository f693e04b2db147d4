"""Checkpoints for ``--resume``: trained parameters and optimizer state, in safetensors and JSON.

They hold no random state (a resumed run draws fresh noise and fresh batches), no gradient and no batch. Two
are kept, each with the hash of its tensors, so that a damaged newest one falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from dpft.errors import DpftError, InputError
from dpft.files import private_folder, read_json, write_atomic, write_json
from dpft.per_sample.capture import trainable


@dataclass(frozen=True)
class Checkpoints:
    """Two alternating slots in a private folder.

    ``extra`` are more tensors that belong to the state (an average, a scale): saved with it, and restored in place."""

    folder: Path
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps_charged: int) -> None:
        """Durable when it returns. ``steps_charged`` orders the slots."""
        private_folder(self.folder)
        slot = min((0, 1), key=self._charged)
        tensors = {f"param.{name}": p.detach().cpu().contiguous() for name, p in trainable(model).items()}
        tensors |= {f"extra.{name}": t.detach().cpu().contiguous() for name, t in self.extra.items()}
        state = optimizer.state_dict()
        plain: dict[str, Any] = {}
        for index, entry in state["state"].items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"state.{index}.{key}"] = value.detach().cpu().contiguous()
                else:
                    plain[f"{index}.{key}"] = value
        data = save(tensors)
        described = {"steps_charged": steps_charged, "groups": state["param_groups"], "plain": plain}
        # The description goes last: until it is there, with the hash of both, the slot does not count.
        self._json(slot).unlink(missing_ok=True)
        write_atomic(self._tensors(slot), data, private=True)
        write_json(self._json(slot), {**described, "sha256": _seal(data, described)}, private=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, str | None]:
        """Load the newest sound checkpoint: (its charged steps, a remark if another was damaged).

        (0, None) where there is none: the run starts from its initial parameters."""
        damaged = "the newest checkpoint is damaged; went back to the one before"
        there = [slot for slot in (0, 1) if self._json(slot).exists()]
        # A description that can't be read sorts last, and may well have been the newest.
        remark = damaged if any(self._charged(slot) < 0 for slot in there) else None
        for slot in sorted(there, key=self._charged, reverse=True):
            try:
                return self._restore(slot, model, optimizer), remark
            except (DpftError, OSError, KeyError, TypeError, ValueError):
                remark = damaged
        return 0, remark

    def _restore(self, slot: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        meta, data = read_json(self._json(slot)), self._tensors(slot).read_bytes()
        if meta.pop("sha256") != _seal(data, meta):
            raise InputError("the checkpoint does not match its hash")
        tensors = load(data)
        params = trainable(model)
        found, extra = _named(tensors, "param."), _named(tensors, "extra.")
        if _shapes(found) != _shapes(params) or _shapes(extra) != _shapes(self.extra):
            raise InputError("checkpoint holds other parameters")
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "state":
                index, key = rest.split(".", 1)
                state.setdefault(int(index), {})[key] = tensor
        for name, value in meta["plain"].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": meta["groups"]})
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(found[name])
            for name, tensor in self.extra.items():
                tensor.copy_(extra[name])
        return int(meta["steps_charged"])

    def _charged(self, slot: int) -> int:
        try:
            return int(read_json(self._json(slot))["steps_charged"])
        except (DpftError, KeyError, ValueError, TypeError):
            return -1

    def _json(self, slot: int) -> Path:
        return self.folder / f"checkpoint-{slot}.json"

    def _tensors(self, slot: int) -> Path:
        return self.folder / f"checkpoint-{slot}.safetensors"


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in tensors.items()}


def _seal(tensors: bytes, described: dict[str, Any]) -> str:
    """Hash of a checkpoint's tensors and of what describes them."""
    return hashlib.sha256(tensors + json.dumps(described, sort_keys=True).encode()).hexdigest()
