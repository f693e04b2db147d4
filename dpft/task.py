"""What a run's records are, texts or images: how they are read, brought to tensors, measured and imitated.

``run`` knows no more of either than this; the model's side is ``dpft/models/classifier.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from dpft.config import DataSection
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
from dpft.engine.microbatch import Collate, token_length
from dpft.errors import InputError
from dpft.models.classifier import Classifier, ImageClassifier
from dpft.models.pixels import image_shape, patches
from dpft.models.source import ModelSource, load_tokenizer


class Task(Protocol):
    """The records' side of a run. Nothing here is computed from several records."""

    @property
    def collate(self) -> Collate:
        """From examples to one batch of tensors."""

    def load(self) -> Data[Any]:
        """Read the records; the first and only place that does."""

    def examples(self, records: Sequence[Any]) -> list[Any]:
        """One example a record, a function of that record and public settings."""

    def length(self, example: Any) -> int:
        """What an example costs of the token budget."""

    def synthetic(self) -> dict[str, Any]:
        """A batch for the preflight that holds nothing of any record."""

    def inputs(self) -> dict[str, Any]:
        """What ``dpft.json`` says about how records became inputs."""


class Texts:
    """Records that a tokenizer reads."""

    def __init__(self, section: DataSection, source: ModelSource, model: Classifier) -> None:
        self._section, self._vocabulary = section, model.config.vocab_size
        self._tokenizer = load_tokenizer(source)
        self.collate = Collator.for_tokenizer(self._tokenizer)

    def load(self) -> Data[Any]:
        return load_text_data(self._section)

    def examples(self, records: Sequence[Any]) -> list[Any]:
        return list(tokenise(self._tokenizer, records, self._section))

    def length(self, example: Any) -> int:
        return token_length(example)

    def synthetic(self) -> dict[str, Any]:
        longest = min(self._section.max_length, 48)
        types = "token_type_ids" in self.collate.model_input_names
        rng = np.random.default_rng(0)  # shapes for the proof; no privacy rests on it
        labels = len(self._section.labels)
        return self.collate(synthetic_examples(self._vocabulary, 4, (min(5, longest), longest), labels, rng, types))

    def inputs(self) -> dict[str, Any]:
        return {}  # the tokenizer is the base model's; template and length stand in the recipe


class Images:
    """Records that are decoded to the size that the model reads. Every example costs the same."""

    def __init__(self, section: DataSection, model: Classifier) -> None:
        self._section, self._shape = section, image_shape(model.config)
        self._tokens = patches(model.config) + 1
        self.collate = ImageCollator.for_section(section, self._shape)

    def load(self) -> Data[Any]:
        return load_image_data(self._section)

    def examples(self, records: Sequence[Any]) -> list[Any]:
        return list(image_examples(records, self._section, self._shape))

    def length(self, example: Any) -> int:
        return self._tokens

    def synthetic(self) -> dict[str, Any]:
        return self.collate(synthetic_images(4, len(self._section.labels), self.collate))

    def inputs(self) -> dict[str, Any]:
        return {"images": asdict(self.collate)}


def task_of(section: DataSection, source: ModelSource, model: Classifier) -> Task:
    """The records' side of a run on ``model``. Raises :class:`InputError` where one is text and the other images."""
    if section.images != isinstance(model, ImageClassifier):
        found, wanted = ("images", "texts") if section.images else ("texts", "images")
        raise InputError(
            f"[data] describes {found}, and model.source={source.public_name!r} reads {wanted}; choose a model for "
            f"{found}, or other records."
        )
    return Images(section, model) if section.images else Texts(section, source, model)
