"""How an exported model is used, as its README says it: what goes in, and code without dpft that computes logits, or
writes.

One class for texts, one for images, one for models that write; each is made of a ``dpft.json`` and, for texts, the
recipe of the run.
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

    @property
    def what(self) -> str:
        """What the model is, for the title."""

    @property
    def tokens(self) -> bool:
        """Whether a tokenizer goes with it."""

    def inputs(self) -> str:
        """How training records became inputs; empty where that is not known."""

    def code(self) -> str:
        """Python that defines ``logits``, or ``write``, with a merged model in a folder."""


@dataclass(frozen=True)
class Texts:
    """For texts."""

    meta: Mapping[str, Any]
    run: Path | None
    tokens = True

    @property
    def what(self) -> str:
        return _TITLES[self.meta.get("task", "classification")]

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
        if self.meta.get("task") == "token-classification":
            pooled = "hidden"
        return f"""import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder = "path/to/this/folder"
tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
head = load_file(f"{{folder}}/head.safetensors")


@torch.no_grad()
def logits(texts):  # [number of texts, {self._outputs()}
    batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    hidden = encoder(**batch).last_hidden_state
    pooled = {pooled}
{_scale(self.meta)}    return F.linear(pooled, head["weight"], head["bias"])"""

    def _outputs(self) -> str:
        each = "tokens, " if self.meta.get("task") == "token-classification" else ""
        if not self.meta["labels"]:
            return "1]: the value"
        return f"{each}{len(self.meta['labels'])}]; the label of class i is encoder.config.id2label[i]"


@dataclass(frozen=True)
class Writers:
    """For models that write text."""

    meta: Mapping[str, Any]
    run: Path | None
    tokens = True
    what = "A language model"

    def inputs(self) -> str:
        return Texts(self.meta, self.run).inputs()

    def code(self) -> str:
        auto = AUTO[self.meta["task"]]
        start = "" if self.meta["task"] == "seq2seq" else 'batch["input_ids"].shape[1]'
        return f"""from transformers import {auto}, AutoTokenizer

folder = "path/to/this/folder"
tokenizer, model = AutoTokenizer.from_pretrained(folder), {auto}.from_pretrained(folder).eval()


def write(prompt, **options):  # options: those of transformers' generate
    batch = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    return tokenizer.decode(model.generate(**batch, **options)[0][{start}:], skip_special_tokens=True)"""


AUTO = {"causal-lm": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}
_TITLES = {
    "classification": "A text classifier",
    "multilabel": "A text classifier with several labels",
    "regression": "A text regression model",
    "token-classification": "A tagger of words",
}


@dataclass(frozen=True)
class Images:
    """For images. ``meta["images"]``: shape, peak, mean, std."""

    meta: Mapping[str, Any]
    tokens = False
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
    if meta.get("task") in AUTO:
        return Writers(meta, run)
    if "images" not in meta:
        found_texts = Texts(meta, run)
        found_texts.code()
        return found_texts
    found = Images(meta)
    found.inputs(), found.code()
    return found


def _scale(meta: Mapping[str, Any]) -> str:
    norm = meta["feature_norm"]
    return "" if norm is None else f"    pooled = {norm!r} * F.normalize(pooled, dim=-1)\n"
