"""A model on recorded outputs computes what it computes from scratch, and runs nothing that is frozen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dpft.cache.frozen import find
from dpft.cache.replay import RECORDED, Replay
from dpft.engine.collect import collect
from dpft.engine.preflight import preflight
from dpft.errors import PrivacyError
from dpft.models.losses import classification_loss
from dpft.per_sample import per_example_gradients

NAMES = ["head", "last-k", "lora, last block", "rungs"]
# Of the gradient's norm: 2^-9 and 2^-12 are half a unit in the last place of the two types.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 8 * 2.0**-9, torch.float16: 8 * 2.0**-12}


def replayed(model: Any, batch: Any, compute: torch.dtype = torch.float32) -> Replay:
    return Replay(model, find(model, classification_loss, batch, compute))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_whole_model(name: str, dtype: torch.dtype, attached: Any, letters: Any) -> None:
    """Bit for bit from float32, which is what the modules return; within rounding from two bytes a number."""
    model, task = attached(name), letters()
    batch = task.collate(task.records[:12])
    replay = replayed(model, task.synthetic())
    recorded = {stream: t.to(dtype) for stream, t in replay.record(classification_loss, batch).items()}
    found, losses = collect(model, classification_loss, replay.batch(batch, recorded), expected=12)
    truth, expected = collect(model, classification_loss, batch, expected=12)
    assert set(found) == set(truth)
    assert len(found) >= 2
    scale = torch.stack([g.dense().norm() for g in truth.values()]).norm()  # a key's bias has none of its own
    for parameter in truth:
        gap = (found[parameter].dense() - truth[parameter].dense()).norm()
        assert gap <= ROUNDING[dtype] * scale, parameter
    assert (losses - expected).norm() <= ROUNDING[dtype] * expected.norm()
    if dtype != torch.float32:
        assert not torch.equal(losses, expected)  # the rounding is really there


@pytest.mark.parametrize("name", NAMES)
def test_frozen_blocks_never_run(name: str, attached: Any, letters: Any, calls: Any) -> None:
    model, task = attached(name), letters()
    replay, batch = replayed(model, task.synthetic()), task.collate(task.records[:5])
    recorded = replay.record(classification_loss, batch)
    counted = calls(model)
    collect(model, classification_loss, replay.batch(batch, recorded), expected=5)
    assert counted.blocks[:2] == [0, 0]
    assert (counted.blocks[2] > 0) == (name in ("last-k", "lora, last block"))
    model(**{key: t for key, t in batch.items() if key != "labels"})
    assert counted.blocks[0] == 1  # the counter counts, and an ordinary batch runs the whole model


@pytest.mark.parametrize("name", NAMES)
def test_the_preflight_proves_the_replayed_model(name: str, attached: Any, letters: Any) -> None:
    model, task = attached(name), letters()
    replay, batch = replayed(model, task.synthetic()), task.synthetic()
    uses = preflight(model, classification_loss, replay.batch(batch, replay.record(classification_loss, batch)))
    assert not uses.alone
    part = task.collate(task.records[:7])
    part = replay.batch(part, replay.record(classification_loss, part))
    grads, _ = collect(model, classification_loss, part, expected=7, uses=uses)
    for parameter, g in per_example_gradients(model, classification_loss, part).items():
        torch.testing.assert_close(grads[parameter].dense(), g, rtol=1e-4, atol=1e-6)


def test_the_preflight_still_sees_coupled_examples(attached: Any, letters: Any) -> None:
    """The instrument fires behind the cut as it does without one."""
    model, task = attached("last-k"), letters()
    replay, batch = replayed(model, task.synthetic()), task.synthetic()
    batch = replay.batch(batch, replay.record(classification_loss, batch))
    model.encoder.encoder.layer[2].output.register_forward_hook(lambda _m, _a, out: out - out.mean(0, keepdim=True))
    with pytest.raises(PrivacyError):
        preflight(model, classification_loss, batch)


def test_an_error_in_the_middle_leaves_no_answer_behind(attached: Any, letters: Any) -> None:
    model, task = attached("last-k"), letters()
    replay, batch = replayed(model, task.synthetic()), task.synthetic()
    inputs = {key: t for key, t in batch.items() if key != "labels"}
    whole = model(**inputs)
    recorded = replay.record(classification_loss, batch)
    trouble = model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs, **recorded)
    trouble.remove()
    other = task.collate(task.records[:4])
    del other["labels"]
    assert not torch.equal(model(**other)[:1], whole[:1])
    torch.testing.assert_close(model(**inputs), whole, rtol=0, atol=0)


def test_removed_the_model_is_as_it_was(attached: Any, letters: Any) -> None:
    model, task = attached("rungs"), letters()
    before = copy.deepcopy({n: set(m.__dict__) for n, m in model.named_modules()})
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks)
    replay = replayed(model, task.synthetic())
    assert "forward" in model.encoder.embeddings.__dict__
    replay.remove()
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == before
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == hooks


def test_one_vector_a_record_needs_no_tokens(attached: Any, letters: Any) -> None:
    model, task = attached("head"), letters()
    replay, batch = replayed(model, task.synthetic()), task.synthetic()
    short = replay.batch(batch, replay.record(classification_loss, batch))
    assert set(short) == {RECORDED, "labels"}
    assert short[RECORDED].shape == (4, 16)


def test_bfloat16_products_replay_bit_for_bit(attached: Any, letters: Any) -> None:
    from dpft.cache.frozen import computed_in

    model, task = attached("last-k"), letters()
    batch = task.collate(task.records[:6])
    replay = replayed(model, task.synthetic(), torch.bfloat16)
    recorded = replay.record(computed_in(classification_loss, torch.bfloat16), batch)
    found, _ = collect(model, classification_loss, replay.batch(batch, recorded), expected=6, compute=torch.bfloat16)
    truth, _ = collect(model, classification_loss, batch, expected=6, compute=torch.bfloat16)
    for parameter in truth:
        assert torch.equal(found[parameter].dense(), truth[parameter].dense()), parameter
