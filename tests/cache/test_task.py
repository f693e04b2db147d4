"""Training on a cache: the same weights as without one, and one pass of the backbone in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpft.cache.build import key_of, runs
from dpft.cache.frozen import find
from dpft.cache.task import CachedTask
from dpft.config.cache_section import CacheSection
from dpft.engine.accumulate import Accumulator
from dpft.engine.microbatch import LogicalBatch
from dpft.errors import InputError
from dpft.models.losses import classification_loss
from dpft.per_sample.capture import trainable

NAMES = ["head", "last-k", "lora, last block", "rungs"]
STEPS = 12
# Of the way that the weights went: float32 differs by which kernel a shape gets, the others by what they round off.
FAR = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}


@pytest.mark.parametrize("dtype", FAR)
@pytest.mark.parametrize("name", NAMES)
def test_the_trained_weights_are_those_without_a_cache(
    name: str, dtype: Any, attached: Any, letters: Any, calls: Any, tmp_path: Path, train: Any, gap_and_way: Any
) -> None:
    task = letters()
    start = {n: p.detach().clone() for n, p in trainable(attached(name)).items()}
    plain = train(attached(name), task, task.records, tmp_path / "plain.jsonl", steps=STEPS)
    model = attached(name)
    cached = CachedTask(CacheSection(dtype=dtype), task, model, classification_loss, tmp_path / "cache")
    examples, counted = cached.examples(task.records), calls(model)
    cached.examples = lambda _: examples  # the cache is filled before the counting begins
    found = train(model, cached, task.records, tmp_path / "cached.jsonl", steps=STEPS)
    assert counted.blocks[:2] == [0, 0]
    gap, way = gap_and_way(start, plain, found)
    assert gap <= FAR[dtype] * way
    assert way > 0.1


def test_the_backbone_runs_once_for_all_records_and_not_again_on_reopening(
    attached: Any, letters: Any, calls: Any, tmp_path: Path
) -> None:
    task, model = letters(), attached("last-k")
    cached = CachedTask(CacheSection(), task, model, classification_loss, tmp_path / "cache")
    counted, said = calls(model), []
    cached.examples(task.records, say=said.append)
    lengths = np.array([len(r["input_ids"]) for r in task.records])
    assert counted.blocks[0] == len(list(runs([(n,) for n in lengths.tolist()], 4096))) == len(set(lengths.tolist()))
    cached.examples(task.records, say=said.append)
    again = CachedTask(CacheSection(), task, attached("last-k"), classification_loss, tmp_path / "cache")
    again.examples(task.records, say=said.append)
    assert counted.blocks[0] == len(set(lengths.tolist()))
    assert len(said) == 1


BAD = 2  # a token that no other record has, synthetic ones included


def clipped(model: Any, task: Any, examples: list[Any]) -> torch.Tensor:
    adder = Accumulator(model, classification_loss, trainable(model), bound=0.05, token_budget=40)
    return adder.sum(LogicalBatch(examples, task.collate, task.length))[0]


@pytest.mark.parametrize(("dtype", "value"), [("float32", torch.inf), ("float32", torch.nan), ("float16", 3e6)])
@pytest.mark.parametrize("name", NAMES)
def test_a_record_that_is_not_finite_counts_as_zero_and_stops_nothing(
    name: str, dtype: Any, value: float, attached: Any, letters: Any, tmp_path: Path
) -> None:
    """A9, F2: the clipped sum is that of the others, as it is without a cache; 3e6 is beyond float16 alone."""
    task, model = letters(), attached(name)
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight[BAD] = value if value != 3e6 else 0.0
    others = list(task.records)
    bad = {"input_ids": np.array([5, BAD, 7], dtype=np.int32), "label": 1}
    expected = clipped(model, task, others)
    if value != 3e6:
        assert torch.equal(clipped(model, task, [bad]), torch.zeros_like(expected))
    cached = CachedTask(CacheSection(dtype=dtype), task, model, classification_loss, tmp_path / "cache")
    if value == 3e6:
        beyond(cached, BAD, value)
    examples = cached.examples([*others, bad])
    found = clipped(model, cached, examples)
    assert torch.equal(clipped(model, cached, examples[-1:]), torch.zeros_like(expected))
    assert (found - expected).norm() <= FAR[dtype] * expected.norm()
    assert expected.norm() > 0.05


def beyond(cached: CachedTask, token: int, value: float) -> None:
    """What is recorded of records with ``token`` is ``value`` throughout: finite, and beyond float16."""
    real = cached._replay.record

    def record(loss: Any, batch: Any) -> dict[str, torch.Tensor]:
        recorded = real(loss, batch)
        for rows in recorded.values():
            rows[(batch["input_ids"] == token).any(dim=1)] = value
        return recorded

    cached._replay.record = record  # type: ignore[method-assign]


def test_synthetic_outputs_beyond_the_type_are_refused(attached: Any, letters: Any, tmp_path: Path) -> None:
    """They are public; the sentence comes before any record is read."""
    model = attached("last-k")
    with torch.no_grad():
        model.encoder.encoder.layer[1].output.LayerNorm.weight.mul_(1e6)
    CachedTask(CacheSection(), letters(), model, classification_loss, tmp_path / "wide").finish()
    with pytest.raises(InputError, match=r"On synthetic records .* cache\.dtype='float16'"):
        CachedTask(CacheSection(dtype="float16"), letters(), model, classification_loss, tmp_path / "narrow")


@pytest.mark.parametrize("change", ["weights", "config", "method", "record"])
def test_another_model_or_record_is_computed_anew(change: str, attached: Any, letters: Any, tmp_path: Path) -> None:
    task, said = letters(), []
    first = CachedTask(CacheSection(), task, attached("last-k"), classification_loss, tmp_path / "cache")
    first.examples(task.records)
    model = attached(
        {"method": "rungs"}.get(change, "last-k"), **({"hidden_act": "relu"} if change == "config" else {})
    )
    if change == "weights":
        with torch.no_grad():
            model.encoder.embeddings.word_embeddings.weight[5, 2] += 1e-6
    records = list(task.records)
    if change == "record":
        records[3] = {**records[3], "input_ids": records[3]["input_ids"][::-1] + 1}
    other = CachedTask(CacheSection(), task, model, classification_loss, tmp_path / "cache")
    other.examples(records, say=said.append)
    assert len(said) == 1


def test_trained_weights_are_no_part_of_the_key(attached: Any, letters: Any) -> None:
    """A run that is resumed has other ones."""
    model, batch = attached("last-k"), letters().synthetic()
    cut = find(model, classification_loss, batch)
    key = key_of(model, cut, torch.float32)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(1.0)
    assert key_of(model, cut, torch.float32) == key
    assert key_of(model, cut, torch.bfloat16) != key


def test_a_records_outputs_are_those_of_the_record_alone(attached: Any, letters: Any, tmp_path: Path) -> None:
    """Among records of its own length, without padding: rounding is all that neighbours leave."""
    task, model = letters(), attached("last-k")
    alone = CachedTask(CacheSection(), task, model, classification_loss, tmp_path / "one", budget=1)
    lonely = [alone.collate([e])["recorded"] for e in alone.examples(task.records)]
    alone.finish()
    cached = CachedTask(CacheSection(), task, model, classification_loss, tmp_path / "many")
    for example, expected in zip(cached.examples(task.records), lonely, strict=True):
        torch.testing.assert_close(cached.collate([example])["recorded"], expected, rtol=1e-5, atol=1e-6)


def test_padding_on_the_left_gives_the_same(attached: Any, letters: Any, tmp_path: Path) -> None:
    losses = []
    for side in ("left", "right"):
        task, model = letters(side=side), attached("rungs")
        cached = CachedTask(CacheSection(), task, model, classification_loss, tmp_path / side)
        batch = cached.collate(cached.examples(task.records))
        assert (batch["attention_mask"][:, 0] == 0).any() == (side == "left")
        assert torch.equal(batch["recorded"].any(-1), batch["attention_mask"].bool())
        losses.append(classification_loss(model, batch))
    torch.testing.assert_close(*losses)


def test_finish_deletes_unless_it_is_kept(attached: Any, letters: Any, tmp_path: Path) -> None:
    for keep in (False, True):
        task, model = letters(), attached("head")
        cached = CachedTask(CacheSection(keep=keep), task, model, classification_loss, tmp_path / "cache")
        cached.examples(task.records)
        cached.finish()
        assert (tmp_path / "cache").exists() == keep


def test_what_can_not_be_cached_is_refused_before_a_record_is_read(attached: Any, letters: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cache"):
        CachedTask(CacheSection(), letters(), attached("lora"), classification_loss, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
