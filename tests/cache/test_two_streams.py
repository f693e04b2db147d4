"""A ladder on an encoder and a decoder: each stack's outputs are kept with its own tokens, and neither runs again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from dpft.cache.frozen import find
from dpft.cache.replay import DECODED, RECORDED, Replay
from dpft.cache.task import CachedTask
from dpft.config.cache_section import CacheSection
from dpft.data import Collator
from dpft.errors import InputError
from dpft.models.language import LanguageModel
from dpft.models.losses import seq2seq_loss
from dpft.peft import Ladder, attach
from dpft.peft.registry import method_from
from dpft.per_sample.capture import trainable

WIDTH, VOCABULARY = 16, 23
METHODS = {
    "default": Ladder(reduction=2),
    "published": Ladder(reduction=2, start="published"),
    "keep": Ladder(reduction=2, keep=(1,)),
}


def writer(method: Any = METHODS["default"]) -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=2,
        decoder_start_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = attach(LanguageModel(transformers.T5ForConditionalGeneration(config)), method)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.1 * torch.randn(p.shape))
    return model.eval()


def pairs(count: int, seed: int = 1) -> list[Any]:
    """Texts of 1 to 8 tokens, with 1 to 5 to write."""
    rng = np.random.default_rng(seed)

    def ids(shortest: int, longest: int) -> Any:
        return rng.integers(3, VOCABULARY, rng.integers(shortest, longest)).astype(np.int32)

    return [{"input_ids": ids(1, 9), "label": ids(1, 6)} for _ in range(count)]


class Pairs:
    """Records are their own examples."""

    collate = Collator(0, "right", task="seq2seq")
    labels = collate.labels
    records = pairs(30)

    def examples(self, records: Any, folder: Path | None = None) -> list[Any]:
        return list(records)

    def length(self, example: Any) -> int:
        return len(example["input_ids"]) + len(example["label"])

    def synthetic(self) -> dict[str, Any]:
        return self.collate(pairs(4, seed=9))


class Blocks:
    """Counts the backbone's attention modules that run."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        for name, module in model.named_modules():
            if "ladder" not in name and name.endswith(("SelfAttention", "EncDecAttention")):
                module.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_those_of_the_whole_model(method: str) -> None:
    model, task = writer(METHODS[method]), Pairs()
    batch, params = task.collate(task.records[:6]), trainable(model)

    def outcome(inputs: Any) -> list[torch.Tensor]:
        losses = seq2seq_loss(model, inputs)
        return [losses.detach(), *torch.autograd.grad(losses.sum(), list(params.values()))]

    truth = outcome(batch)
    replay = Replay(model, find(model, seq2seq_loss, task.synthetic()))
    recorded = replay.record(seq2seq_loss, batch)
    assert recorded[RECORDED].shape[:2] == batch["input_ids"].shape
    assert recorded[DECODED].shape[:2] == batch["labels"].shape
    counted = Blocks(model)
    found = outcome(replay.batch(batch, recorded))
    assert counted.calls == 0
    replay.remove()
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    outcome(batch)
    assert counted.calls == 3 + 2 * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_a_cache_ends_at_the_same_weights(method: str, train: Any, gap_and_way: Any, tmp_path: Path) -> None:
    start = {n: p.detach().clone() for n, p in trainable(writer(METHODS[method])).items()}
    task = Pairs()
    plain = train(writer(METHODS[method]), task, task.records, tmp_path / "plain.jsonl", loss=seq2seq_loss)
    model = writer(METHODS[method])
    cached = CachedTask(CacheSection(), task, model, seq2seq_loss, tmp_path / "cache")  # type: ignore[arg-type]
    examples, counted = cached.examples(task.records), Blocks(model)
    cached.examples = lambda _: examples  # type: ignore[method-assign]  # filled before the counting begins
    found = train(model, cached, task.records, tmp_path / "cached.jsonl", loss=seq2seq_loss)
    assert counted.calls == 0
    gap, way = gap_and_way(start, plain, found)
    assert gap <= 1e-4 * way
    assert way > 0.1
    cached.finish()


def test_another_text_to_write_is_another_record(tmp_path: Path) -> None:
    """The decoder reads it, so a cache that was made with it is not taken for one of the new record."""
    task, section, said = Pairs(), CacheSection(keep=True), list[str]()
    for records in (task.records, task.records, [{**e, "label": e["label"][::-1].copy()} for e in task.records]):
        cached = CachedTask(section, task, writer(), seq2seq_loss, tmp_path / "cache")  # type: ignore[arg-type]
        cached.examples(records, say=said.append)
    assert len(said) == 2


def test_what_needs_the_encoder_besides_is_refused() -> None:
    """The last decoder block attends to an encoder that would not run."""
    with pytest.raises(InputError, match=r"needs more of the frozen part.* leave \[cache\] out\.$"):
        find(writer(method_from({"name": "last-k"})), seq2seq_loss, Pairs().synthetic())
