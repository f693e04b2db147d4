"""What is frozen is found, proved, and nothing else is taken for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dpft.cache.frozen import find
from dpft.errors import InputError
from dpft.models.classifier import TextClassifier
from dpft.models.losses import classification_loss
from dpft.per_sample.capture import trainable

BLOCK = "encoder.encoder.layer.{}.forward"


@pytest.mark.parametrize(
    ("name", "points", "skipped", "tokens"),
    [
        ("head", ["features"], [], 0),
        ("last-k", [BLOCK.format(1)], ["encoder.embeddings.forward", BLOCK.format(0)], None),
        ("lora, last block", [BLOCK.format(1)], ["encoder.embeddings.forward", BLOCK.format(0)], None),
        ("rungs", ["encoder.embeddings.forward", BLOCK.format(0), BLOCK.format(2)], [BLOCK.format(1)], None),
    ],
)
def test_the_cut_is_as_late_as_the_method_allows(
    name: str, points: list[str], skipped: list[str], tokens: int | None, attached: Any, letters: Any
) -> None:
    model = attached(name)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    cut = find(model, classification_loss, letters().synthetic())
    assert [point.place for point in cut.points] == points
    assert [point.place for point in cut.skipped] == skipped
    assert (cut.tokens, cut.width) == (tokens, 16 * len(points))
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert not any("forward" in m.__dict__ or "features" in m.__dict__ for m in model.modules())  # no tap is left


def test_what_trains_in_the_prefix_is_refused(attached: Any, letters: Any) -> None:
    with pytest.raises(InputError, match=r"trains encoder\.\S*lora_A.* leave \[cache\] out\.$"):
        find(attached("lora"), classification_loss, letters().synthetic())


def test_dropout_is_refused(attached: Any, letters: Any) -> None:
    with pytest.raises(InputError, match=r"dropout"):
        find(attached("head").train(), classification_loss, letters().synthetic())


def test_one_module_in_training_mode_is_enough(attached: Any, letters: Any) -> None:
    model = attached("last-k")
    model.encoder.encoder.layer[0].output.dropout.train()
    with pytest.raises(InputError, match=r"dropout"):
        find(model, classification_loss, letters().synthetic())


def test_a_trained_value_that_autograd_can_not_see_is_noticed(attached: Any, letters: Any) -> None:
    """A detached copy of a trained parameter carries no gradient, and changes all the same."""
    model = attached("last-k")

    def meddle(_m: Any, _a: Any, out: torch.Tensor) -> torch.Tensor:
        return out + model.head.weight.detach().sum()

    model.encoder.embeddings.LayerNorm.register_forward_hook(meddle)
    with pytest.raises(InputError, match=r"nothing to cache"):
        find(model, classification_loss, letters().synthetic())


def test_statistics_over_the_batch_are_refused(attached: Any, letters: Any) -> None:
    model = attached("head")
    model.encoder.embeddings.LayerNorm.register_forward_hook(lambda _m, _a, out: out - out.mean(dim=0, keepdim=True))
    with pytest.raises(InputError, match=r"batch statistics"):
        find(model, classification_loss, letters().synthetic())


def test_an_output_that_is_needed_and_not_read_is_noticed(attached: Any, letters: Any) -> None:
    """The ladder looks at a block that it does not declare: that block answers with NaN."""
    model = attached("rungs")
    ladder = model.encoder.ladder
    layer = model.encoder.encoder.layer[1]
    layer.register_forward_hook(lambda _m, _a, out: ladder.read.__setitem__("embeddings", out))
    with pytest.raises(InputError, match=r"needs more of the frozen part"):
        find(model, classification_loss, letters().synthetic())


class Own(nn.Module):
    """No model of a known family, and its features are a method of that name by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(23, 4), nn.Linear(4, 2)
        self.table.requires_grad_(False)

    def features(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids).mean(1)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.out(self.features(input_ids))


def test_an_unknown_model_is_refused(letters: Any) -> None:
    with pytest.raises(InputError, match=r"blocks are not known"):
        find(Own().eval(), classification_loss, letters().synthetic())


def test_bfloat16_products_are_recorded_as_they_come(attached: Any, letters: Any) -> None:
    """A parameter that moves between two passes is seen: autocast keeps no cast of it."""
    cut = find(attached("last-k"), classification_loss, letters().synthetic(), torch.bfloat16)
    assert len(cut.points) == 1
    assert trainable(attached("last-k"))
    with pytest.raises(InputError):
        find(attached("lora"), classification_loss, letters().synthetic(), torch.bfloat16)


FAMILIES = ["bert", "roberta", "electra", "deberta-v2", "mpnet", "distilbert", "modernbert", "gpt2", "llama", "vit"]
_MODELS: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "vit": {"image_size": 8, "patch_size": 4},
    "electra": {"embedding_size": 12},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
    "llama": {"num_key_value_heads": 1},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
}
_USUAL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def family_model(family: str, method: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A classifier on a tiny model of the family, and a batch for it."""
    import transformers

    from dpft.models.classifier import classifier
    from dpft.peft import attach
    from dpft.peft.registry import method_from

    torch.manual_seed(0)
    sizes = {} if "dim" in _MODELS.get(family, {}) or "n_embd" in _MODELS.get(family, {}) else _USUAL
    sizes = {} if family == "t5" else sizes
    values = {**sizes, **_SPECIAL, "vocab_size": 23, "max_position_embeddings": 16, **_MODELS.get(family, {})}
    if family in ("gpt2", "t5", "vit"):
        values.pop("max_position_embeddings")
    if family == "vit":
        values = {**_USUAL, **_MODELS["vit"]}
    config = transformers.AutoConfig.for_model(family, **values)
    kind = transformers.T5EncoderModel if family == "t5" else transformers.AutoModel
    body = kind(config) if family == "t5" else kind.from_config(config, attn_implementation="eager")
    model = classifier(body, 2, "mean", None)
    attach(model, method_from({"name": method}), train=("head",))
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([0, 1, 1, 0])
    if family == "vit":
        return model, {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator), "labels": labels}
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 3])[:, None]).long()
    ids = torch.randint(3, 23, (4, 6), generator=generator) * mask
    return model, {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("family", [*FAMILIES, "t5"])
def test_the_head_of_every_family_trains_on_its_features(family: str) -> None:
    model, batch = family_model(family, "head")
    assert isinstance(model, TextClassifier) or family == "vit"
    assert [p.place for p in find(model, classification_loss, batch).points] == ["features"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_of_every_family_but_t5_trains_on_the_one_below(family: str) -> None:
    """``find`` itself compares loss and gradients with those of the whole model."""
    model, batch = family_model(family, "last-k")
    cut = find(model, classification_loss, batch)
    assert [p.place.split(".")[-2] for p in cut.points] == ["0"]
    assert len(cut.skipped) == 1


def test_t5_blocks_hand_on_a_position_bias_and_are_refused() -> None:
    model, batch = family_model("t5", "last-k")
    with pytest.raises(InputError, match=r"position bias"):
        find(model, classification_loss, batch)
