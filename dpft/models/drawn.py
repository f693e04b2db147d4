"""A model without pretrained weights: its shape from an HF configuration, its values drawn from the recipe's seed.

The draw reads no record, so the initial values are public and cost no privacy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpft.errors import InputError

START = "config:"
"""What a ``model.source`` of this kind begins with; the rest is the configuration's file."""

# Fields that transformers reads from a configuration of any kind without listing them.
_TAKEN = {"decoder_start_token_id"}


@dataclass(frozen=True)
class Drawn:
    """What makes the model again: an HF configuration (``model_type`` and its fields) and a seed."""

    config: Mapping[str, Any]
    seed: int

    def build(self, attention: str | None = None, auto: str = "AutoModel") -> Any:
        """The encoder (no task head), or what another of transformers' auto classes makes of the configuration;
        float32, in eval mode. The random state of the process stays as it is."""
        import transformers

        config = checked(self.config)
        options = {"attn_implementation": attention} if attention else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return getattr(transformers, auto).from_config(config, dtype=torch.float32, **options).eval()


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a JSON file. Errors: :class:`InputError` that names what is wrong with it."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        raise InputError(
            f"model.source names the configuration {path.name}, which is missing or not JSON; check the path."
        ) from None
    checked(values)
    return dict(values)


def checked(values: Any) -> Any:
    """The HF configuration of these values. A name that it does not know is refused: a default would take its place."""
    from transformers import AutoConfig

    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise InputError('Expected the model\'s configuration to be a JSON object with a "model_type" such as "vit".')
    fields = {name: value for name, value in values.items() if name != "model_type"}
    try:
        known = AutoConfig.for_model(values["model_type"]).to_dict()
        unknown = sorted(fields.keys() - known.keys() - _TAKEN)
        if not unknown:
            return AutoConfig.for_model(values["model_type"], **fields)
    except Exception as error:  # no closed list: each model type checks its fields in its own way
        reason = str(error).strip().splitlines()
        raise InputError(f"The model's configuration can't be used: {reason[0] if reason else 'unknown'}") from None
    raise InputError(f"The model's configuration has the unknown field {unknown[0]!r}; correct or remove it.")


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 (hex) of the parameters that do not train: what another machine has to draw alike."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        if not p.requires_grad:
            digest.update(f"{name}{tuple(p.shape)}".encode() + p.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
