"""From examples to one padded batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dpft.config.task_fields import LANGUAGE_TASKS, Task
from dpft.data.tokenise import NOT_LEARNT, Example

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Collator:
    """Pads to the longest example of the list.

    Padding only adds columns that the attention mask switches off; no example's own values depend on the
    others. ``pad_token_id`` is any valid id: what it is doesn't matter behind the mask.
    """

    pad_token_id: int
    padding_side: Side = "right"
    model_input_names: tuple[str, ...] = ("input_ids", "attention_mask")
    task: Task = "classification"
    labels_each: int = 1  # numbers in a multilabel example's label

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, task: Task = "classification", labels_each: int = 1) -> Self:
        """The collator that fits a tokenizer; one without a padding token pads with its end token, else 0."""
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad = next(token_id for token_id in ids if token_id is not None)
        names = [n for n in tokenizer.model_input_names if n != "token_type_ids" or task not in LANGUAGE_TASKS]
        return cls(pad, tokenizer.padding_side, tuple(names), task, labels_each)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """int64 tensors: input_ids, attention_mask and, for models that take them, token_type_ids, all
        ``[B, T]``; and :meth:`labels`. An empty list, which Poisson sampling does draw, gives B = 0 and T = 1."""
        import torch

        ids = [example["input_ids"] for example in examples]
        there = _there(ids, self.padding_side)
        columns = {"input_ids": _padded(ids, self.pad_token_id, there), "attention_mask": there.astype(np.int64)}
        if "token_type_ids" in self.model_input_names:
            types = [e["token_type_ids"] if "token_type_ids" in e else np.zeros_like(e["input_ids"]) for e in examples]
            columns["token_type_ids"] = _padded(types, 0, there)
        return {**{name: torch.from_numpy(column) for name, column in columns.items()}, "labels": self.labels(examples)}

    def labels(self, examples: Sequence[Any]) -> Tensor:
        """What is learnt: int64 [B] class ids; float32 [B] numbers, or [B, K] of 0 and 1; int64 [B, T] ids of the
        input's tokens, padded as these are; or [B, S] of the text to write, padded on the right."""
        import torch

        found = [example["label"] for example in examples]
        if self.task in ("token-classification", "causal-lm", "seq2seq"):
            side: Side = "right" if self.task == "seq2seq" else self.padding_side
            return torch.from_numpy(_padded(found, NOT_LEARNT, _there(found, side)))
        if self.task == "multilabel":
            return torch.from_numpy(np.array(found, dtype=np.float32).reshape(len(found), self.labels_each))
        return torch.from_numpy(np.array(found, dtype=np.float32 if self.task == "regression" else np.int64))


def _there(rows: Sequence[NDArray[np.int32]], side: Side) -> NDArray[np.bool_]:
    """[B, T]: which places hold a token of their row, and which are padding. T is 1 for no rows."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))[:, None]
    places = np.arange(lengths.max(initial=0 if len(rows) else 1))
    return places < lengths if side == "right" else places >= len(places) - lengths


def _padded(rows: Sequence[NDArray[np.int32]], value: int, there: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[B, T]: the rows, one after the other, in their places; all at once, since a loop over them would be felt."""
    padded = np.full(there.shape, value, dtype=np.int64)
    padded[there] = np.concatenate(rows) if rows else ()
    return padded
