"""An encoder, a pooling, and a linear head that starts at zero."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.models.pixels import PIXELS, image_shape, patches

Pooling = Literal["cls", "mean", "last"]


class Classifier(nn.Module, ABC):
    """Logits [B, K] from what an encoder reads.

    ``feature_norm``: pooled features are scaled to this norm, which bounds the head's per-example gradient
    by a public constant; None leaves them as they are. The head is zero at the start, so the first gradient
    does not depend on a random draw.
    """

    trained_in_full: tuple[str, ...] = ("head",)
    """Modules that train with every method: the head starts at zero."""

    def __init__(self, encoder: nn.Module, labels: int, pooling: Pooling, feature_norm: float | None) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.register_module("pooler", None)  # never used here: it would train on noise alone
        self.encoder, self.pooling, self.feature_norm = encoder, pooling, feature_norm
        weight = next(encoder.parameters())
        self.head = nn.Linear(_width(encoder), labels, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> Any:
        """The encoder's HF configuration."""
        return self.encoder.config

    @abstractmethod
    def features(self, *args: Any, **inputs: Any) -> Tensor:
        """Pooled features [B, d] of the encoder's last hidden state."""

    def scaled(self, pooled: Tensor) -> Tensor:
        """Pooled features [B, d] at ``feature_norm``."""
        return pooled if self.feature_norm is None else self.feature_norm * F.normalize(pooled, dim=-1)

    def forward(self, *args: Tensor, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(*args, **inputs))
        return logits


class TextClassifier(Classifier):
    """Logits [B, K] from token ids [B, T].

    ``pooling``: the first token's last hidden state (``cls``), the mean over unmasked tokens (``mean``), or the last
    unmasked token's (``last``: what a decoder such as GPT-2 has read everything by)."""

    def features(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            places = torch.arange(attention_mask.shape[1], device=hidden.device)
            last = (places * (attention_mask > 0)).argmax(dim=1)  # padding may be on either side
            pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)
        return self.scaled(pooled)


class TokenClassifier(Classifier):
    """Logits [B, T, K] from token ids [B, T]: the head reads each token's last hidden state."""

    def features(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return self.scaled(hidden)


class ImageClassifier(Classifier):
    """Logits [B, K] from pixel values [B, C, H, W] and an encoder of the ViT kind.

    ``pooling``: the class token's last hidden state (``cls``), or the mean over the patches (``mean``), which are the
    last tokens of these models: class and register tokens come before them."""

    def features(self, pixel_values: Tensor, **inputs: Tensor) -> Tensor:
        hidden = self.encoder(pixel_values=pixel_values, **inputs).last_hidden_state
        return self.scaled(hidden[:, 0] if self.pooling == "cls" else hidden[:, -patches(self.config) :].mean(dim=1))


def classifier(encoder: nn.Module, labels: int, pooling: Pooling, feature_norm: float | None) -> Classifier:
    """The classifier that fits what the encoder reads, pixels or tokens."""
    if getattr(encoder, "main_input_name", None) != PIXELS:
        return TextClassifier(encoder, labels, pooling, feature_norm)
    image_shape(encoder.config)  # or a sentence about what is missing
    if pooling == "last":
        raise InputError('Expected model.pooling="cls" or "mean" with a model that reads images.')
    return ImageClassifier(encoder, labels, pooling, feature_norm)


def _width(encoder: nn.Module) -> int:
    config: Any = encoder.config
    return int(getattr(config, "hidden_size", None) or config.dim)
