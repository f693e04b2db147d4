"""A tiny random model of every family, with its usual task, from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDTH, LAYERS, VOCABULARY, PAD, CLASSES = 16, 2, 23, 0, 3
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
    "num_labels": CLASSES,
}
_ENDS = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
# What a family needs beside the usual.
_BESIDE: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 12},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "position_buckets": 4,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
    },
    "modernbert": {"global_attn_every_n_layers": 2},
    "llama": {"num_key_value_heads": 1},
}
# Families that call the usual by other names.
_OWN: dict[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": VOCABULARY, "max_position_embeddings": 16, "pad_token_id": PAD, "dim": WIDTH,
        "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 24, "num_labels": CLASSES,
    },
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 16, **_ENDS},
    "t5": {
        "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": LAYERS, "num_heads": 2,
        "decoder_start_token_id": PAD, **_ENDS,
    },
    "vit": {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24,
        "image_size": 8, "patch_size": 4, "num_labels": CLASSES,
    },
}  # fmt: skip
# Families that have the names, and here the sizes, of another (dpft/peft/families.py).
_ALIKE = {
    "mistral": "llama", "qwen2": "llama", "qwen3": "llama", "gemma": "llama", "xlm-roberta": "roberta",
    "camembert": "roberta", "mt5": "t5", "deit": "vit",
}  # fmt: skip
_OWN |= {
    "mt5": {**_OWN["t5"], "feed_forward_proj": "gated-gelu"},
    "deit": {**_OWN["vit"], "architectures": ["DeiTForImageClassification"]},
}
_BESIDE |= {name: {"num_key_value_heads": 1, "head_dim": 8} for name, like in _ALIKE.items() if like == "llama"}
TASKS = {"gpt2": "causal-lm", "llama": "causal-lm", "t5": "seq2seq", "vit": "image-classification"}
HEADS = ("classifier", "score", "head", "pre_classifier", "pooler")


def _config(family: str, attention: str) -> Any:
    from transformers import AutoConfig

    values = _OWN.get(family, {**_USUAL, **_BESIDE.get(family, {})})
    if family == "modernbert":
        # Eager attention takes its softmax in float32, where float64's masked value is -inf: a padded token
        # whose whole window is padding would be nan. In float32 it is finite, so this is of tests alone.
        values = {**values, "local_attention": 12 if attention == "eager" else 4}
    return AutoConfig.for_model(family, **values)


@pytest.fixture
def tiny_encoder() -> Any:
    """``tiny_encoder(model_type, attention)``: random weights, float64, in eval mode."""
    import torch
    from transformers import AutoModel

    def make(model_type: str, attention: str = "eager") -> Any:
        torch.manual_seed(0)
        config = _config(model_type, attention)
        return AutoModel.from_config(config, attn_implementation=attention).double().eval()

    return make


@dataclass(frozen=True)
class Task:
    """A model with a task: ``loss(model, batch)`` is a vector; ``heads`` are the modules that train beside a method."""

    model: nn.Module
    batch: dict[str, Tensor]
    loss: Callable[[Any, Any], Tensor]
    heads: tuple[str, ...]

    def logits(self) -> Tensor:
        import torch

        found: list[Tensor] = []
        hook = self.model.register_forward_hook(lambda _m, _a, out: found.append(getattr(out, "logits", out)))
        with torch.no_grad():
            self.loss(self.model, self.batch)
        hook.remove()
        return found[0]


@pytest.fixture
def task() -> Callable[..., Task]:
    """``task(family)``: float64, eval mode, four examples of unequal lengths; the same every time."""
    import torch
    import transformers

    from dpft.models.losses import LOSSES

    kinds = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "image-classification": transformers.AutoModelForImageClassification,
        "classification": transformers.AutoModelForSequenceClassification,
    }

    def make(family: str, attention: str = "eager", *, pooled: bool = False) -> Task:
        kind = TASKS.get(_ALIKE.get(family, family), "classification")
        torch.manual_seed(0)
        if pooled and kind in ("causal-lm", "seq2seq"):
            return _pooled(family, attention)
        model = kinds[kind].from_config(_config(family, attention), attn_implementation=attention).double().eval()
        heads = tuple(name for name, _ in model.named_children() if name in HEADS)
        return Task(model, _batch(kind), LOSSES[kind], heads)

    return make


def _pooled(family: str, attention: str) -> Task:
    """A language model's body under a pooled classifier: a head that is not tied to the embedding."""
    import torch
    import transformers

    from dpft.models.classifier import TextClassifier
    from dpft.models.losses import LOSSES

    config = _config(family, attention)
    kind = transformers.T5EncoderModel if family == "t5" else transformers.AutoModel
    body = kind(config) if family == "t5" else kind.from_config(config, attn_implementation=attention)
    model = TextClassifier(body, CLASSES, "mean" if family == "t5" else "last", None).double().eval()
    with torch.no_grad():  # a zero head hides what is below it
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(4)))
    return Task(model, _batch("classification"), LOSSES["classification"], ("head",))


def _batch(kind: str) -> dict[str, Tensor]:
    import torch

    g = torch.Generator().manual_seed(3)
    classes = torch.tensor([0, 2, 1, 0])
    if kind == "image-classification":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=g, dtype=torch.float64), "labels": classes}
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 3])[:, None]).long()
    ids = torch.randint(3, VOCABULARY, (4, 6), generator=g) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": classes}
    if kind == "causal-lm":
        batch["labels"] = torch.where(mask.bool(), ids, -100)
    elif kind == "seq2seq":
        target = torch.randint(3, VOCABULARY, (4, 5), generator=g)
        batch["labels"] = torch.where(torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None], target, -100)
    return batch
