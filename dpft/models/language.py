"""A pretrained model that writes text, with its own head: a decoder, or an encoder and a decoder. Nothing is added."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LanguageModel(nn.Module):
    """Logits [B, T, V] of the next tokens (or [B, S, V] of the text to write) from token ids.

    It has the parts that a classifier has: ``encoder``, here the whole HF model, and ``head``, here empty, since a
    language model's own head is a part of it."""

    trained_in_full: tuple[str, ...] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = model, nn.Sequential()

    @property
    def config(self) -> Any:
        """The model's HF configuration."""
        return self.encoder.config

    def forward(self, **inputs: Any) -> Tensor:
        # Without a cache of keys and values, which only writing has a use for.
        logits: Tensor = self.encoder(**inputs, use_cache=False).logits
        return logits
