"""A safetensors file of prompts that were trained on public tasks: what ATTEMPT mixes.

prompts   [t, P, d]     metadata: names, a JSON list of t names
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from dpft.errors import InputError
from dpft.files import write_atomic

_KEY = "prompts"


@dataclass(frozen=True)
class SourcePrompts:
    """``prompts`` [t, P, d], one of each name; ``sha256`` of the file."""

    names: tuple[str, ...]
    prompts: Tensor
    sha256: str


def read_prompts(path: str | Path) -> SourcePrompts:
    """Raises :class:`InputError` for what is no such file."""
    try:
        data = Path(path).read_bytes()
        prompts = load(data)[_KEY]
        with safe_open(path, "pt") as file:
            names = tuple(map(str, json.loads(file.metadata()["names"])))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise InputError(
            f"Expected {path} to be a file of source prompts, as dpft source-prompt writes it; found none there."
        ) from None
    if prompts.dim() != 3 or len(names) != len(prompts) or not bool(prompts.isfinite().all()):
        raise InputError(f"The source prompts in {path} are damaged: expected finite numbers [t, P, d] and t names.")
    return SourcePrompts(names, prompts, hashlib.sha256(data).hexdigest())


def check_free(path: str | Path, name: str) -> SourcePrompts | None:
    """What is in the file so far, if there is one; :class:`InputError` where it has a prompt of that name."""
    if not Path(path).exists():
        return None
    found = read_prompts(path)
    if name in found.names:
        raise InputError(f"{path} has a prompt {name!r} already; choose another name, or another file.")
    return found


def add_prompt(path: str | Path, name: str, prompt: Tensor) -> SourcePrompts:
    """Put a prompt [P, d] behind those in the file, which is made if it is not there; returns all of them.

    Raises :class:`InputError` for a name that is taken, and for a prompt of another shape."""
    path, new = Path(path), prompt.detach().float().cpu().unsqueeze(0)
    names: tuple[str, ...] = ()
    found = check_free(path, name)
    if found is not None:
        if found.prompts.shape[1:] != new.shape[1:]:
            there, here = tuple(found.prompts.shape[1:]), tuple(new.shape[1:])
            raise InputError(f"Expected a prompt of shape {there}, as the others in {path} have, found {here}.")
        names, new = found.names, torch.cat([found.prompts, new])
    write_atomic(path, save({_KEY: new.contiguous()}, {"names": json.dumps([*names, name])}))
    return read_prompts(path)
