"""Ladder side-tuning on a cache: the side network runs on recorded outputs, and the backbone not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dpft.cache.frozen import find
from dpft.cache.replay import RECORDED, Replay
from dpft.cache.task import CachedTask
from dpft.config.cache_section import CacheSection
from dpft.models.classifier import classifier
from dpft.models.losses import classification_loss
from dpft.peft import Ladder, attach
from dpft.per_sample.capture import trainable

WIDTH, VOCABULARY, LAYERS = 16, 23, 3
_USUAL = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 16,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _USUAL,
    "electra": {**_USUAL, "embedding_size": 12},
    "llama": {**_USUAL, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 16,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "vit": {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24,
        "image_size": 8, "patch_size": 4,
    },
    "t5": {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": LAYERS, "num_heads": 2},
}  # fmt: skip
POOLING: dict[str, Any] = {"gpt2": "last", "llama": "last", "vit": "cls"}
METHODS = {
    "default": Ladder(reduction=2),
    "published": Ladder(reduction=2, start="published"),
    "keep": Ladder(reduction=2, keep=(0, 1)),
    "keep, published": Ladder(reduction=2, keep=(1,), start="published"),
}


@pytest.fixture
def laddered() -> Callable[..., Any]:
    """``laddered(family, method)``: the same weights every time, float32, none of what trains at zero."""

    def make(family: str, method: str = "default") -> Any:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **CONFIGS[family])
        kind: Any = transformers.T5EncoderModel if family == "t5" else transformers.AutoModel
        body = kind(config) if family == "t5" else kind.from_config(config, attn_implementation="eager")
        model = classifier(body, 2, POOLING.get(family, "mean"), None)
        attach(model, METHODS[method], train=("head",))
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(0.1 * torch.randn(p.shape))
        return model

    return make


def batch_for(family: str) -> dict[str, torch.Tensor]:
    g, labels = torch.Generator().manual_seed(1), torch.tensor([0, 1, 1, 0])
    if family == "vit":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=g), "labels": labels}
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 3])[:, None]).long()
    ids = torch.randint(3, VOCABULARY, (4, 6), generator=g) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Blocks:
    """Counts the forward passes of the backbone's attention modules."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        for name, module in model.encoder.named_modules():
            if "ladder" not in name and name.rpartition(".")[2] in ("self", "attn", "self_attn", "attention"):
                module.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradients_are_those_of_the_whole_model(family: str, method: str, laddered: Any) -> None:
    model, batch = laddered(family, method), batch_for(family)
    params = trainable(model)

    def outcome(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        losses = classification_loss(model, inputs)
        return [losses.detach(), *torch.autograd.grad(losses.sum(), list(params.values()))]

    truth = outcome(batch)
    cut = find(model, classification_loss, batch)
    replay = Replay(model, cut)
    recorded = replay.record(classification_loss, batch)
    counted = Blocks(model)
    found = outcome(replay.batch(batch, recorded))
    replay.remove()
    assert counted.calls == 0
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    outcome(batch)
    assert family == "t5" or counted.calls > 0


@pytest.mark.parametrize(
    ("method", "read"),
    [("default", [0, 1, 2]), ("published", [0, 1, 2]), ("keep", [0, 1, 2]), ("keep, published", [1])],
)
def test_what_is_recorded_is_what_the_side_network_reads(method: str, read: list[int], laddered: Any) -> None:
    """The embedding, the kept blocks, and the last one where the backbone's output counts."""
    cut = find(laddered("bert", method), classification_loss, batch_for("bert"))
    blocks = [f"encoder.encoder.layer.{i}.forward" for i in range(LAYERS)]
    assert [p.place for p in cut.points] == ["encoder.embeddings.forward", *(blocks[i] for i in read)]
    assert {p.place for p in cut.skipped} == {blocks[i] for i in range(LAYERS) if i not in read}
    assert cut.width == WIDTH * (1 + len(read))


@pytest.mark.parametrize("method", ["default", "keep"])
def test_a_run_on_a_cache_ends_at_the_same_weights(
    method: str, laddered: Any, letters: Any, train: Any, gap_and_way: Any, tmp_path: Path
) -> None:
    start = {n: p.detach().clone() for n, p in trainable(laddered("bert", method)).items()}
    task = letters()
    plain = train(laddered("bert", method), task, task.records, tmp_path / "plain.jsonl")
    model = laddered("bert", method)
    cached = CachedTask(CacheSection(), task, model, classification_loss, tmp_path / "cache")
    examples, counted = cached.examples(task.records), Blocks(model)
    cached.examples = lambda _: examples  # type: ignore[method-assign]  # filled before the counting begins
    found = train(model, cached, task.records, tmp_path / "cached.jsonl")
    assert counted.calls == 0
    gap, way = gap_and_way(start, plain, found)
    assert gap <= 1e-4 * way
    assert way > 0.1
    batch = task.synthetic()
    before = model(**{n: t for n, t in batch.items() if n != "labels"})
    cached.finish()
    torch.testing.assert_close(model(**{n: t for n, t in batch.items() if n != "labels"}), before)
    assert RECORDED not in batch
