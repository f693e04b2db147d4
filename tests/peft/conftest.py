"""A tiny random model of every family, from its configuration alone."""

from __future__ import annotations

from typing import Any

import pytest

WIDTH, LAYERS, VOCABULARY, PAD = 16, 2, 23, 0
_USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
# What a family needs beside the usual, or calls by another name.
_ITS_OWN: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 12},
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 24},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "position_buckets": 4,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
    },
    "modernbert": {"global_attn_every_n_layers": 2},
}


@pytest.fixture
def tiny_encoder() -> Any:
    """``tiny_encoder(model_type, attention)``: random weights, float64, in eval mode."""
    import torch
    from transformers import AutoConfig, AutoModel

    def make(model_type: str, attention: str = "eager") -> Any:
        torch.manual_seed(0)
        names = {} if model_type == "distilbert" else _USUAL
        shared = {k: v for k, v in _USUAL.items() if k in ("vocab_size", "max_position_embeddings", "pad_token_id")}
        own = dict(_ITS_OWN.get(model_type, {}))
        if model_type == "modernbert":
            # Eager attention takes its softmax in float32, where float64's masked value is -inf: a padded token
            # whose whole window is padding would be nan. In float32 it is finite, so this is of tests alone.
            own["local_attention"] = 12 if attention == "eager" else 4
        config = AutoConfig.for_model(model_type, **(names or shared), **own)
        return AutoModel.from_config(config, attn_implementation=attention).double().eval()

    return make
