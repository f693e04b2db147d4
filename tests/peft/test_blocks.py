"""``blocks``: a method in the last transformer blocks alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from dpft.errors import InputError
from dpft.peft import Adapter, Compacter, LoRA, Method, SparseAdapter, attach
from dpft.per_sample.capture import trainable

INSIDE: list[tuple[str, Callable[..., Method], str]] = [
    ("bert", LoRA, "encoder.layer.1."),
    ("bert", Adapter, "encoder.layer.1."),
    ("bert", Compacter, "encoder.layer.1."),
    ("bert", SparseAdapter, "encoder.layer.1."),
    ("gpt2", LoRA, "h.1."),
    ("t5", LoRA, "decoder.block.1."),
]


@pytest.mark.parametrize(("family", "make", "block"), INSIDE)
def test_it_trains_in_them_as_it_would_anywhere(
    family: str, make: Callable[..., Method], block: str, tiny_encoder: Callable[..., Any]
) -> None:
    everywhere = trainable(attach(tiny_encoder(family), make()))
    there = trainable(attach(tiny_encoder(family), make(blocks=1)))
    expected = {name for name in everywhere if name.startswith(block)}
    assert expected < set(everywhere)
    # Compacter's shared rule goes by the name of its first use.
    shared = {name for name in there if name.endswith("rule")}
    assert there.keys() - shared == {name for name in expected if not name.endswith("rule")}
    assert all(name.startswith(block) for name in shared)


def test_all_blocks_are_those_it_has_without(tiny_encoder: Callable[..., Any]) -> None:
    names = [set(trainable(attach(tiny_encoder("bert"), LoRA(blocks=blocks)))) for blocks in (None, 2)]
    assert names[0] == names[1]


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "none": (lambda _: LoRA(blocks=0), r"method\.blocks=0 to be a whole number"),
    "true": (lambda _: Adapter(blocks=True), r"method\.blocks=True to be a whole number"),
    "more than there are": (lambda make: attach(make("bert"), LoRA(blocks=3)), r"method\.blocks=3 to be at most 2"),
    "targets below them": (
        lambda make: attach(make("bert"), Adapter(targets=("layer.0.output",), blocks=1)),
        r"names no module of the last 1 blocks",
    ),
    "no blocks known": (
        lambda _: attach(nn.ModuleDict({"q": nn.Linear(2, 2)}), LoRA(targets=("q",), blocks=1)),
        r"method\.blocks counts transformer blocks.*name the layers with method\.targets",
    ),
}


@pytest.mark.parametrize(("act", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_refused_by_name(
    act: Callable[[Any], object], says: str, tiny_encoder: Callable[..., Any]
) -> None:
    """F4."""
    with pytest.raises(InputError, match=says):
        act(tiny_encoder)
