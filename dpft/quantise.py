"""Weights in 8 bits: a row of a Linear layer as whole numbers from -127 to 127 and one scale.

    s = max |w| / 127 over the row,  q = round(w / s),  so |w - q s| <= s / 2;  zero stays exactly zero

Only the weights are quantised, from their own values alone: no activation is looked at, so no record is, and of weights
that were trained privately this is post-processing, free of privacy cost. Everything else (embeddings, normalisation,
biases) stays as it is. What loads multiplies out again: a quarter of the file, not of the memory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dpft.files import write_atomic
from dpft.models.source import quiet
from dpft.peft.families import is_linear

FILE = "model-int8.safetensors"
SCALE = ":scale"  # behind the name of a weight: no module is called so
_PLAIN = "AutoModel.from_pretrained(folder)"
_LOADER = f"""def load_int8(folder):  # rows of whole numbers times a scale each; everything else as it is
    stored = load_file(f"{{folder}}/{FILE}")
    scales = {{name: stored.pop(name) for name in list(stored) if name.endswith("{SCALE}")}}
    weights = {{n: t * scales[n + "{SCALE}"] if t.dtype == torch.int8 else t for n, t in stored.items()}}
    empty = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    return type(empty).from_pretrained(None, config=empty.config, state_dict=weights)
"""


def quantised(weight: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """(q int8 of ``weight``'s shape, s with size 1 along ``dim``): one scale for all entries that differ in ``dim``.

    Guarantee, for finite weights: |weight - q s| <= s / 2 up to rounding of the product, and q = 0 where weight = 0."""
    wide = weight.detach().float()
    scale = (wide.abs().amax(dim=dim, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale).round_().clamp_(-127, 127).to(torch.int8), scale


def quantised_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, each once, with Linear weights as int8 and their scales beside them."""
    dims = {f"{name}.weight": int(isinstance(m, nn.Linear)) for name, m in model.named_modules() if is_linear(m)}
    elsewhere = {id(p) for m in model.modules() if not is_linear(m) for p in m.parameters(recurse=False)}
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:  # tied: the model ties it again when it is made
            continue
        seen.add(id(tensor))
        if name in dims and id(tensor) not in elsewhere:
            state[name], state[name + SCALE] = (t.cpu().contiguous() for t in quantised(tensor, dims[name]))
        else:
            state[name] = tensor.detach().cpu().contiguous()
    return state


def save_int8(model: nn.Module, folder: Path) -> None:
    """Write config.json and model-int8.safetensors."""
    with quiet():
        model.config.save_pretrained(folder)  # type: ignore[operator, union-attr]
    write_atomic(folder / FILE, save(quantised_state(model), {"format": "pt"}))


def loading_int8(code: str) -> str:
    """Python that loads a folder by plain transformers, changed to multiply out the 8-bit weights."""
    head, line, rest = code.partition('folder = "')
    head = head.replace("import AutoModel", "import AutoConfig, AutoModel")
    return f"{head}\n{_LOADER}\n\n{line}{rest.replace(_PLAIN, 'load_int8(folder)', 1)}"
