"""How an exported classifier is used, as its README says it: what goes in, and code without dpft that computes logits.

One class for texts and one for images; each is made of a ``dpft.json`` and, for texts, the recipe of the run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_LAST = 'hidden[range(len(hidden)), (batch["attention_mask"] * torch.arange(hidden.shape[1])).argmax(1)]'
_MEAN = '(hidden * batch["attention_mask"][..., None]).sum(1) / batch["attention_mask"].sum(1, keepdim=True)'


class Usage(Protocol):
    """The README's words for one kind of input."""

    what: str
    """What the classifier is, for the title."""

    def inputs(self) -> str:
        """How training records became inputs; empty where that is not known."""

    def code(self) -> str:
        """Python that defines ``logits`` with a merged model in a folder."""


@dataclass(frozen=True)
class Texts:
    """For texts."""

    meta: Mapping[str, Any]
    run: Path | None
    what = "A text classifier"

    def inputs(self) -> str:
        try:
            text = (self.run / "run.toml").read_text() if self.run else ""
            data = tomllib.loads(text)["data"]
            length, template = int(data["max_length"]), str(data["template"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return f"\nTraining texts were put into the template `{template}` and cut at {length} tokens.\n"

    def code(self) -> str:
        pooled = {"cls": "hidden[:, 0]", "last": _LAST, "mean": _MEAN}[self.meta["pooling"]]
        return f"""import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder = "path/to/this/folder"
tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
head = load_file(f"{{folder}}/head.safetensors")


@torch.no_grad()
def logits(texts):  # [number of texts, {len(self.meta["labels"])}]; the label of class i is encoder.config.id2label[i]
    batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    hidden = encoder(**batch).last_hidden_state
    pooled = {pooled}
{_scale(self.meta)}    return F.linear(pooled, head["weight"], head["bias"])"""


@dataclass(frozen=True)
class Images:
    """For images. ``meta["images"]``: shape, peak, mean, std."""

    meta: Mapping[str, Any]
    what = "An image classifier"

    def inputs(self) -> str:
        (channels, height, width), peak = self.meta["images"]["shape"], self.meta["images"]["peak"]
        mean, std = (", ".join(f"{x:g}" for x in self.meta["images"][name]) for name in ("mean", "std"))
        return (
            f"\nTraining images were brought to {height} x {width} pixels and {channels} "
            f"channel{'s' if channels > 1 else ''}, divided by {peak:g}, less {mean}, divided by {std}.\n"
        )

    def code(self) -> str:
        images = self.meta["images"]
        # Class and register tokens come before the patches, whatever their number.
        pooled = "hidden[:, 0]" if self.meta["pooling"] == "cls" else "hidden[:, -patches:].mean(1)"
        (channels, height, width), k = images["shape"], len(self.meta["labels"])
        return f"""import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel

folder = "path/to/this/folder"
encoder = AutoModel.from_pretrained(folder).eval()
head = load_file(f"{{folder}}/head.safetensors")
mean, std = (torch.tensor(x).reshape(-1, 1, 1) for x in ({images["mean"]}, {images["std"]}))
patches = ({height} // encoder.config.patch_size) * ({width} // encoder.config.patch_size)


@torch.no_grad()
def logits(images):  # pixels of 0 to {images["peak"]}: [B, {channels}, {height}, {width}] -> [B, {k}]
    hidden = encoder(pixel_values=(images / {images["peak"]} - mean) / std).last_hidden_state
    pooled = {pooled}
{_scale(self.meta)}    return F.linear(pooled, head["weight"], head["bias"])  # class i is encoder.config.id2label[i]"""


def usage(meta: Mapping[str, Any], run: Path | None) -> Usage:
    """The words for what ``dpft.json`` describes. Raises KeyError, TypeError or ValueError for a damaged one."""
    if "images" not in meta:
        return Texts(meta, run)
    found = Images(meta)
    found.inputs(), found.code()
    return found


def _scale(meta: Mapping[str, Any]) -> str:
    norm = meta["feature_norm"]
    return "" if norm is None else f"    pooled = {norm!r} * F.normalize(pooled, dim=-1)\n"
