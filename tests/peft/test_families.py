"""Families that go by another's row, and those that have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomModel

from dpft.engine.preflight import preflight
from dpft.errors import InputError
from dpft.peft import attach
from dpft.peft.families import ALIASES, FAMILIES
from dpft.peft.method import Method
from dpft.peft.registry import METHODS, method_from

# What attaches by names alone, at every kind of place that a row has.
BY_NAME: list[dict[str, Any]] = [
    {"name": "lora", "rank": 2, "targets": ("all-linear",), "fuse_qkv": True},
    {"name": "adapter", "bottleneck": 4},
    {"name": "prefix", "length": 3},
]


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_has_the_names_of_its_row(alias: str, task: Callable[..., Any]) -> None:
    """As many places as the row's own family of the same size, and gradients that are each example's own."""
    for section in BY_NAME:
        t, row = task(alias), task(ALIASES[alias])
        before = t.logits()
        method = method_from(section)
        attach(t.model, method, train=t.heads)
        attach(row.model, method, train=row.heads)
        assert torch.equal(t.logits(), before) == method.identity
        gate = 4 * 2 if alias == "mt5" and method.name == "lora" else 0  # a layer more in each feed-forward
        assert _trained(t.model) == _trained(row.model) + gate
        assert not preflight(t.model, t.loss, t.batch).alone


def _trained(model: nn.Module) -> int:
    return sum(p.requires_grad for p in model.parameters())


def test_alias_stands_for_a_row_and_for_no_row_of_its_own() -> None:
    assert set(ALIASES.values()) <= set(FAMILIES)
    assert not set(ALIASES) & set(FAMILIES)


NEEDS_A_ROW = ("lora", "ia3", "adapter", "compacter", "sparse-adapter", "dsee", "prefix", "raft", "prompt", "lst")


@pytest.mark.parametrize("name", NEEDS_A_ROW)
def test_remedy_for_an_unknown_family_is_one_that_the_method_has(name: str) -> None:
    model = BloomModel(BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2))
    method: type[Method] = METHODS[name]
    names_targets = "targets" in {f.name for f in fields(method)}  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'bloom'") as caught:
        attach(model, method())
    assert str(caught.value).startswith("Expected method.targets") == names_targets
