"""From examples to one padded batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dpft.data.tokenise import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Collator:
    """Pads to the longest example of the list.

    Padding only adds columns that the attention mask switches off; no example's own values depend on the
    others. ``pad_token_id`` is any valid id: what it is doesn't matter behind the mask.
    """

    pad_token_id: int
    padding_side: Literal["left", "right"] = "right"
    model_input_names: tuple[str, ...] = ("input_ids", "attention_mask")

    @classmethod
    def for_tokenizer(cls, tokenizer: Any) -> Self:
        """The collator that fits a tokenizer; one without a padding token pads with its end token, else 0."""
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad = next(token_id for token_id in ids if token_id is not None)
        return cls(pad, tokenizer.padding_side, tuple(tokenizer.model_input_names))

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """int64 tensors: input_ids, attention_mask and, for models that take them, token_type_ids, all
        ``[B, T]``; labels ``[B]``. An empty list, which Poisson sampling does draw, gives B = 0 and T = 1."""
        import torch

        ids = [example["input_ids"] for example in examples]
        columns = {
            "input_ids": self._padded(ids, self.pad_token_id),
            "attention_mask": self._padded([np.ones(len(row), dtype=np.int32) for row in ids], 0),
            "labels": np.array([example["label"] for example in examples], dtype=np.int64),
        }
        if "token_type_ids" in self.model_input_names:
            types = [e["token_type_ids"] if "token_type_ids" in e else np.zeros_like(e["input_ids"]) for e in examples]
            columns["token_type_ids"] = self._padded(types, 0)
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    def _padded(self, rows: Sequence[NDArray[np.int32]], value: int) -> NDArray[np.int64]:
        T = max((len(row) for row in rows), default=1)
        padded = np.full((len(rows), T), value, dtype=np.int64)
        for row, target in zip(rows, padded, strict=True):
            place = slice(T - len(row), T) if self.padding_side == "left" else slice(0, len(row))
            target[place] = row
        return padded
