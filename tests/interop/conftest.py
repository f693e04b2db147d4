"""Tiny models for what is saved and loaded in HF peft's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

import dpft
from dpft.peft.method import Method
from dpft.peft.registry import METHODS

FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5")
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
}
USUAL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16,
}  # fmt: skip

# What a method needs beside its defaults, on models this small.
FIELDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "alpha": 3.0},
    "adapter": {"bottleneck": 4},
    "compacter": {"bottleneck": 4, "n": 2},
    "tokens": {"tokens": (3, 5)},
    "prompt": {"length": 3},
    "prefix": {"length": 3},
    "attempt": {"count": 2, "length": 3, "width": 4, "temperature": 2.0},
    "dsee": {"rank": 2, "nonzeros": 5},
    "sparse-adapter": {"bottleneck": 4},
}


class Tiny:
    """Tiny models of every family, with and without a method; the same every time."""

    families, sizes, usual = FAMILIES, SIZES, USUAL

    @staticmethod
    def make(name: str, **fields: Any) -> Method:
        """The method with small fields, those it has."""
        cls = METHODS[name]
        return cls(**{k: v for k, v in (fields or FIELDS.get(name, {})).items() if k in cls.__dataclass_fields__})  # type: ignore[attr-defined]

    @staticmethod
    def base(family: str, seed: int = 0) -> Any:
        """A tiny model, float64: the same weights for the same seed."""
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, vocab_size=23, pad_token_id=0, **SIZES.get(family, USUAL))
        return AutoModel.from_config(config).double().eval()

    @staticmethod
    def scattered(model: nn.Module) -> nn.Module:
        """Every trained value moved."""
        g = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.3 * torch.randn(p.shape, generator=g).to(p))
        return model

    @staticmethod
    @torch.no_grad()
    def outputs(model: Any) -> Tensor:
        ids = torch.randint(1, 23, (3, 6), generator=torch.Generator().manual_seed(1))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.config.model_type == "t5":
            inputs["decoder_input_ids"] = ids[:, :4]
        found: Tensor = model(**inputs).last_hidden_state
        return found

    @staticmethod
    def trained(family: str, method: Method) -> Any:
        model = Tiny.base(family)
        if method.name == "head":
            return model.requires_grad_(False)  # nothing of the encoder trains; an empty adapter is an adapter
        return Tiny.scattered(dpft.attach(model, method))

    @staticmethod
    def saved(model: Any, method: Method, folder: Path) -> Path:
        dpft.save_adapter(model, method, folder, base="tiny")
        return folder

    @staticmethod
    def loaded(family: str, folder: Path) -> Any:
        return peft.PeftModel.from_pretrained(Tiny.base(family), str(folder))

    @staticmethod
    def same(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def tiny() -> type[Tiny]:
    return Tiny
