"""A safetensors file of prompts that were trained on public tasks: what ATTEMPT mixes.

prompts   [t, P, d]     metadata: names, a JSON list of t names; origins, of t places or nulls (data/origin.py)
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

from dpft.data.origin import Origin
from dpft.errors import InputError
from dpft.files import write_atomic

_KEY = "prompts"


@dataclass(frozen=True)
class SourcePrompts:
    """``prompts`` [t, P, d], one of each name; ``sha256`` of the file; ``origins``: the records each was made of, if
    its maker said so."""

    names: tuple[str, ...]
    prompts: Tensor
    sha256: str
    origins: tuple[Origin | None, ...]


def read_prompts(path: str | Path) -> SourcePrompts:
    """Raises :class:`InputError` for what is no such file."""
    try:
        data = Path(path).read_bytes()
        prompts = load(data)[_KEY]
        with safe_open(path, "pt") as file:
            said = file.metadata()
        names = tuple(map(str, json.loads(said["names"])))
        found = json.loads(said.get("origins", "null")) or [None] * len(names)
        origins = tuple(None if one is None else Origin.from_dict(one) for one in found)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise InputError(
            f"Expected {path} to be a file of source prompts, as dpft source-prompt writes it; found none there."
        ) from None
    fits = prompts.dim() == 3 and len(names) == len(origins) == len(prompts)
    if not fits or not bool(prompts.isfinite().all()):
        raise InputError(f"The source prompts in {path} are damaged: expected finite numbers [t, P, d] and t names.")
    return SourcePrompts(names, prompts, hashlib.sha256(data).hexdigest(), origins)


def check_free(path: str | Path, name: str) -> SourcePrompts | None:
    """What is in the file so far, if there is one; :class:`InputError` where it has a prompt of that name."""
    if not Path(path).exists():
        return None
    found = read_prompts(path)
    if name in found.names:
        raise InputError(f"{path} has a prompt {name!r} already; choose another name, or another file.")
    return found


def add_prompt(path: str | Path, name: str, prompt: Tensor, origin: Origin | None = None) -> SourcePrompts:
    """Put a prompt [P, d] behind those in the file, which is made if it is not there; returns all of them.

    ``origin``: the public records that it was trained on, so that a run can tell whether its own are among them.
    Raises :class:`InputError` for a name that is taken, and for a prompt of another shape."""
    path, new = Path(path), prompt.detach().float().cpu().unsqueeze(0)
    names: tuple[str, ...] = ()
    origins: tuple[Origin | None, ...] = ()
    found = check_free(path, name)
    if found is not None:
        if found.prompts.shape[1:] != new.shape[1:]:
            there, here = tuple(found.prompts.shape[1:]), tuple(new.shape[1:])
            raise InputError(f"Expected a prompt of shape {there}, as the others in {path} have, found {here}.")
        names, origins, new = found.names, found.origins, torch.cat([found.prompts, new])
    said = [None if one is None else one.to_dict() for one in (*origins, origin)]
    metadata = {"names": json.dumps([*names, name]), "origins": json.dumps(said)}
    write_atomic(path, save({_KEY: new.contiguous()}, metadata))
    return read_prompts(path)
