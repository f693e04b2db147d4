"""Several methods in one model: the union of what they train, kept apart, stored and restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dpft
from dpft.config import load_recipe
from dpft.errors import InputError
from dpft.peft import RAFT, Adapter, BitFit, LoRA, Norms, SparseAdapter, Together, attach, merge
from dpft.peft.method import Method, Wrapper
from dpft.peft.registry import method_from, method_of, section_of

RECIPE = Path(__file__).parents[2] / "recipes" / "methods" / "raft.toml"


def names(model: torch.nn.Module) -> set[str]:
    return {name.replace("base_layer.", "") for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "methods", [(RAFT(), BitFit()), (LoRA(2), Norms()), (Adapter(4), LoRA(2), RAFT())], ids=lambda m: m[0].name
)
def test_what_trains_is_the_union(methods: tuple[Method, ...], tiny_encoder: Callable[..., Any]) -> None:
    alone = [names(attach(tiny_encoder("bert"), method)) for method in methods]
    found = names(attach(tiny_encoder("bert"), Together(methods)))
    assert found == set().union(*alone) | {n for n in found if "adapter" in n and n.endswith("bias")}
    assert all(part < found for part in alone)


def test_biases_of_an_earlier_part_train_once(tiny_encoder: Callable[..., Any]) -> None:
    model = attach(tiny_encoder("bert"), Together((Adapter(4), BitFit())))
    listed = [p for p in model.parameters() if p.requires_grad]
    assert len({id(p) for p in listed}) == len(listed)


def test_merges_if_all_do(tiny_encoder: Callable[..., Any], close: Callable[..., None]) -> None:
    both = Together((LoRA(2), BitFit()))
    assert both.merges
    assert not Together((LoRA(2), RAFT())).merges
    model = attach(tiny_encoder("bert"), both)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g).to(p))
        ids = torch.randint(1, 23, (2, 6), generator=g)
        before = model(ids).last_hidden_state
        close(merge(model)(ids).last_hidden_state, before)
    assert not any(isinstance(m, Wrapper) for m in model.modules())


def test_identity_if_all_are() -> None:
    assert Together((LoRA(2), BitFit())).identity
    assert not Together((RAFT(), BitFit())).identity


def test_the_section_says_all_of_it() -> None:
    both = Together((RAFT(range=4.0), LoRA(2, targets=("query",))))
    section = section_of(both)
    assert section["methods"][0]["range"] == 4.0
    assert method_from(section) == both


def test_a_recipes_beside_is_the_second() -> None:
    assert method_of(load_recipe(RECIPE, [])) == Together((RAFT(), BitFit()))
    assert method_of(load_recipe(RECIPE, ["beside.name=lora", "beside.rank=2"])) == Together((RAFT(), LoRA(2)))


def test_a_second_method_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(InputError, match=r"beside\.name"):
        load_recipe(RECIPE, ["beside.name=full"])


REFUSED: dict[str, tuple[tuple[Method, ...], str]] = {
    "one method": ((LoRA(2),), "at least two"),
    "the same twice": ((LoRA(2), LoRA(3)), "each once"),
    "all of the model": ((dpft.Full(), LoRA(2)), "'full' stands by itself"),
    "another pair": ((Together((RAFT(), BitFit())), LoRA(2)), "'together' stands by itself"),
    "a mask that is paid for": ((SparseAdapter(4, mask="snip", mask_steps=3), BitFit()), "mask_steps"),
}


@pytest.mark.parametrize(("methods", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_pairs_that_make_no_sense_are_refused(methods: tuple[Method, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Together(methods)


@pytest.mark.parametrize("order", [0, 1])
def test_two_methods_on_one_layer_are_refused_and_taken_out(order: int, tiny_encoder: Callable[..., Any]) -> None:
    pair = (LoRA(2, targets=("query", "key")), dpft.IA3(targets=("key",), feedforward=("output.dense",)))
    model = tiny_encoder("bert")
    with pytest.raises(InputError, match=r"encoder\.layer\.0\.attention\.self\.key"):
        attach(model, Together(pair[:: 1 if order else -1]))
    assert not any(isinstance(m, Wrapper) for m in model.modules())
