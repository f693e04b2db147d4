"""What a run's records are, texts or images: how they are read, brought to tensors, learnt, measured and imitated.

``run`` knows no more of either than this; the model's side is ``dpft/models/build.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dpft.config import DataSection, ModelSection
from dpft.data import (
    Collator,
    ImageCollator,
    image_examples,
    load_image_data,
    load_text_data,
    synthetic_examples,
    synthetic_images,
    tokenise,
)
from dpft.data.load import Data
from dpft.data.packed import Packed
from dpft.data.records import Record, render
from dpft.data.tokenise import contexts_of
from dpft.engine.microbatch import Collate, token_length
from dpft.errors import InputError
from dpft.evaluate import scores
from dpft.models.build import TaskModel
from dpft.models.classifier import ImageClassifier
from dpft.models.losses import LOSSES, Loss, causal_lm_loss, classification_loss, seq2seq_loss
from dpft.models.pixels import image_shape, patches
from dpft.models.source import ModelSource, load_tokenizer, resolve
from dpft.peft.soft_prompt import cost
from dpft.score_written import Source, grouped


class Task(Protocol):
    """The records' side of a run. Nothing here is computed from several records."""

    @property
    def collate(self) -> Collate:
        """From examples to one batch of tensors."""

    @property
    def loss(self) -> Loss:
        """One loss an example."""

    def load(self) -> Data[Any]:
        """Read the records; the first and only place that does."""

    def examples(self, records: Sequence[Any], folder: Path | None = None) -> Sequence[Any]:
        """One example a record, a function of that record and public settings; kept in ``folder`` if one is given."""

    def length(self, example: Any) -> int:
        """What an example costs of the token budget."""

    def synthetic(self) -> dict[str, Any]:
        """A batch for the preflight that holds nothing of any record."""

    def labels(self, examples: Sequence[Any]) -> Tensor:
        """What is learnt of examples, as :attr:`collate` has it."""

    def inputs(self) -> dict[str, Any]:
        """What ``dpft.json`` says about how records became inputs."""

    def scores(self, model: nn.Module, examples: Sequence[Any], budget: int, compute: torch.dtype) -> dict[str, float]:
        """The task's figures on examples that did not train, by name: private unless these are public."""


class Texts:
    """Records that a tokenizer reads."""

    def __init__(self, section: DataSection, source: ModelSource, model: TaskModel, label_smoothing: float = 0) -> None:
        self._section, self._vocabulary = section, model.config.vocab_size
        self.tokenizer = load_tokenizer(source)
        if len(self.tokenizer) > self._vocabulary:
            raise InputError(
                f"Expected a model with an embedding for each of the tokenizer's {len(self.tokenizer)} tokens, found "
                f"{self._vocabulary}; name another model.tokenizer or model.source."
            )
        self.collate = Collator.for_tokenizer(self.tokenizer, section.task, section.outputs)
        self.labels = self.collate.labels
        smoothed = {"causal-lm": causal_lm_loss, "seq2seq": seq2seq_loss}.get(section.task)
        self.loss: Loss = (
            partial(smoothed, label_smoothing=label_smoothing) if smoothed and label_smoothing else LOSSES[section.task]
        )

    def load(self) -> Data[Any]:
        return load_text_data(self._section)

    def examples(self, records: Sequence[Any], folder: Path | None = None) -> Sequence[Any]:
        return Packed(tokenise(self.tokenizer, records, self._section), folder)

    def length(self, example: Any) -> int:
        written = len(example["label"]) if self._section.task == "seq2seq" else 0
        return token_length(example) + written

    def synthetic(self) -> dict[str, Any]:
        longest = min(self._section.max_length, 48)
        types = "token_type_ids" in self.collate.model_input_names
        rng = np.random.default_rng(0)  # shapes for the proof; no privacy rests on it
        shortest = min(5, longest)
        return self.collate(synthetic_examples(self._section, self._vocabulary, 4, (shortest, longest), rng, types))

    def sources(self, records: Sequence[Record]) -> list[Source]:
        """What there is to write from in records that have a target, each with all texts that were written from it."""
        rendered = [render(record, self._section.template)[0] for record in records]
        ids = contexts_of(self.tokenizer, rendered, self._section)
        targets = [record.target or "" for record in records]
        return grouped(zip(rendered, ids, targets, strict=True))

    def prompt(self, text: str) -> list[int]:
        """A public text in the place of a record's, as the model that writes is given it."""
        rendered = render(Record(text, None, None), self._section.template)[0]
        return contexts_of(self.tokenizer, [rendered], self._section)[0]

    def scores(self, model: nn.Module, examples: Sequence[Any], budget: int, compute: torch.dtype) -> dict[str, float]:
        length = cost(model, self.length)
        return scores(model, examples, self.collate, budget, compute, length, self._section.task)

    def inputs(self) -> dict[str, Any]:
        return {}  # the tokenizer is the base model's, or the recipe's own; template and length stand in the recipe


class Images:
    """Records that are decoded to the size that the model reads. Every example costs the same."""

    loss: Loss = staticmethod(classification_loss)

    def __init__(self, section: DataSection, model: TaskModel) -> None:
        self._section, self._shape = section, image_shape(model.config)
        self._tokens = patches(model.config) + 1
        self.collate = ImageCollator.for_section(section, self._shape)

    def load(self) -> Data[Any]:
        return load_image_data(self._section)

    def examples(self, records: Sequence[Any], folder: Path | None = None) -> Sequence[Any]:
        return Packed(image_examples(records, self._section, self._shape), folder)

    def length(self, example: Any) -> int:
        return self._tokens

    def synthetic(self) -> dict[str, Any]:
        return self.collate(synthetic_images(4, len(self._section.labels), self.collate))

    def labels(self, examples: Sequence[Any]) -> Tensor:
        return torch.tensor([example["label"] for example in examples], dtype=torch.int64)

    def scores(self, model: nn.Module, examples: Sequence[Any], budget: int, compute: torch.dtype) -> dict[str, float]:
        return scores(model, examples, self.collate, budget, compute, cost(model, self.length))

    def inputs(self) -> dict[str, Any]:
        return {"images": asdict(self.collate)}


def task_of(section: DataSection, source: ModelSource, model: TaskModel, label_smoothing: float = 0) -> Task:
    """The records' side of a run on ``model``; ``source`` has its tokenizer. Raises :class:`InputError` where one is
    text and the other images."""
    if section.images != isinstance(model, ImageClassifier):
        found, wanted = ("images", "texts") if section.images else ("texts", "images")
        raise InputError(
            f"[data] describes {found}, and model.source={source.public_name!r} reads {wanted}; choose a model for "
            f"{found}, or other records."
        )
    return Images(section, model) if section.images else Texts(section, source, model, label_smoothing)


def tokenizer_of(section: ModelSection, source: ModelSource) -> ModelSource:
    """Where the tokenizer comes from: the model, unless the recipe names another."""
    return resolve(section.tokenizer) if section.tokenizer else source
