"""Ladder side-tuning: what the side network computes, and that no graph is kept for the backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft import Ladder, attach
from dpft.peft.registry import cells

FAMILIES = sorted({c.family for c in cells()})


def parts_of(model: nn.Module) -> list[Any]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == "ladder"]


def shaken(model: nn.Module) -> nn.Module:
    """What starts at zero, gates and the way up, moved away from it."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g).to(p))
    return model


def unhooked(side: nn.Module) -> Any:
    """The side network as a plain model."""
    found = copy.deepcopy(side)
    for module in found.modules():
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks_with_kwargs.clear()
    return found


def mixed(part: Any, place: int, z: Tensor, h: Tensor) -> Tensor:
    g = torch.sigmoid(part.gates[place] / 0.1)
    down = part.down[place + 1]
    return g * z + (1 - g) * (h @ down.weight.T + down.bias)


@pytest.mark.parametrize("start", ["backbone", "published"])
@pytest.mark.parametrize("keep", [(), (1,)])
def test_the_output_is_that_of_the_formula(start: Any, keep: tuple[int, ...], tiny_encoder: Any) -> None:
    bare, model = tiny_encoder("bert"), tiny_encoder("bert")
    shaken(attach(model, Ladder(reduction=2, keep=keep, start=start)))
    ids = torch.tensor([[1, 5, 7, 4, 2]])
    with torch.no_grad():
        seen = bare(ids, output_hidden_states=True).hidden_states
        (part,) = parts_of(model)
        side = unhooked(part.side)
        z = seen[0] @ part.down[0].weight.T + part.down[0].bias
        for place, i in enumerate(keep or (0, 1)):
            z = side.encoder.layer[place](mixed(part, place, z, seen[i + 1]))
        expected = z @ part.up.weight.T + part.up.bias + (seen[-1] if start == "backbone" else 0)
        found = model(ids)
        torch.testing.assert_close(found.last_hidden_state, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.pooler_output, bare.pooler(expected), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model(ids, return_dict=False)[1], found.pooler_output)


def test_a_side_decoder_attends_to_the_side_encoder(tiny_encoder: Any) -> None:
    """With T5's relative positions computed by the first kept block alone."""
    bare, model = tiny_encoder("t5"), tiny_encoder("t5")
    shaken(attach(model, Ladder(reduction=2, keep=(1,), start="published")))
    ids, target = torch.tensor([[5, 7, 4, 2]]), torch.tensor([[0, 3, 9]])
    hidden: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    for name, found in hidden.items():
        stack = bare.get_submodule(name)
        stack.block[0].register_forward_pre_hook(lambda _m, a, found=found: found.append(a[0]))
        stack.block[1].register_forward_hook(lambda _m, _a, out, found=found: found.append(out[0]))
    later = torch.full((3, 3), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
    masks: dict[str, Any] = {"encoder": torch.zeros(1, 1, 4, 4).double(), "decoder": later[None, None]}
    with torch.no_grad():
        bare(input_ids=ids, decoder_input_ids=target)
        read: dict[str, Any] = {}
        for part, (name, (e, h)) in zip(parts_of(model), hidden.items(), strict=True):
            side = unhooked(part.side)
            z = e @ part.down[0].weight.T + part.down[0].bias
            z = side.block[0](mixed(part, 0, z, h), masks[name], **read)[0]
            z = side.final_layer_norm(z)
            read = {"encoder_hidden_states": z}
        expected = z @ part.up.weight.T + part.up.bias
        found = model(input_ids=ids, decoder_input_ids=target).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_graph_is_kept_for_the_backbone(family: str, task: Callable[..., Any]) -> None:
    """The memory claim: of a forward pass, nothing of the backbone waits for a backward pass."""
    t = task(family)
    attach(t.model, Ladder(reduction=2), train=t.heads)
    parts = parts_of(t.model)
    inside, kept = [False], []
    for part in parts:
        host = next(m for m in t.model.modules() if getattr(m, "ladder", None) is part)
        host.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True), prepend=True)
        host.register_forward_hook(lambda *_: inside.__setitem__(0, False), prepend=True)
        part.side.register_forward_pre_hook(lambda *_: inside.__setitem__(0, False), prepend=True)
    seen: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        (kept if inside[0] else seen).append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        t.loss(t.model, t.batch).sum().backward()
    assert kept == []
    assert seen
    assert all(p.grad is None for n, p in t.model.named_parameters() if "ladder" not in n and not p.requires_grad)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reduction": 0}, "method.reduction"),
        ({"keep": (1, 0)}, "rising order"),
        ({"keep": (-1,)}, "from 0"),
        ({"keep": (True,)}, "places"),
        ({"init": "magic"}, "method.init"),
        ({"start": "never"}, "method.start"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ladder(**fields)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("bert", {"reduction": 3}, r"method.reduction=3 to divide 16, this model's hidden_size"),
        ("t5", {"reduction": 16}, r"method.reduction=16 to divide 8, this model's d_kv"),
        ("gpt2", {"reduction": 16}, "width of a head"),
        ("llama", {"reduction": 8}, "even number"),
        ("bert", {"reduction": 2, "keep": (0, 2)}, r"method.keep=\[0, 2\].*2 blocks"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    family: str, fields: dict[str, Any], message: str, tiny_encoder: Any
) -> None:
    model = tiny_encoder(family)
    before = [type(m) for m in model.modules()]
    with pytest.raises(InputError, match=message):
        attach(model, Ladder(**fields))
    assert [type(m) for m in model.modules()] == before
    with pytest.raises(InputError, match="side networks are tested"):
        attach(nn.Sequential(nn.Linear(2, 2)), Ladder())


@pytest.mark.parametrize(("family", "limit"), [("gpt2", 8), ("llama", 8), ("t5", 6)])
def test_it_generates_without_a_cache_of_keys_and_refuses_one(family: str, limit: int, task: Any) -> None:
    t = task(family)
    shaken(attach(t.model, Ladder(reduction=2)))
    ids = {"input_ids": t.batch["input_ids"][:1], "attention_mask": t.batch["attention_mask"][:1]}
    made = t.model.generate(**ids, max_length=limit, do_sample=False, use_cache=False, eos_token_id=None)
    with torch.no_grad():
        given = {"decoder_input_ids": made} if family == "t5" else {}
        logits = t.model(**(ids if family == "t5" else {"input_ids": made}), **given).logits
    first = 0 if family == "t5" else 5
    assert torch.equal(made[0, first + 1 :], logits[0, first:-1].argmax(-1))
    with pytest.raises(InputError, match="use_cache=False"):
        t.model.generate(**ids, max_length=limit, do_sample=False, use_cache=True, eos_token_id=None)
    if family == "t5":
        with pytest.raises(InputError, match="num_beams=1"):
            t.model.generate(**ids, max_length=limit, num_beams=2, use_cache=False)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_on_the_left_changes_nothing(attention: str, tiny_encoder: Any) -> None:
    model = shaken(attach(tiny_encoder("gpt2", attention), Ladder(reduction=2)))
    ids = torch.tensor([[5, 7, 4]])
    padded = torch.tensor([[0, 0, 5, 7, 4]])
    with torch.no_grad():
        alone = model(ids).last_hidden_state
        places = torch.tensor([[0, 0, 0, 1, 2]])
        beside = model(padded, attention_mask=(padded > 0).long(), position_ids=places).last_hidden_state
    torch.testing.assert_close(beside[:, 2:], alone, rtol=1e-10, atol=1e-10)


def test_a_copy_of_the_model_has_a_side_network_of_its_own(tiny_encoder: Any) -> None:
    model = shaken(attach(tiny_encoder("t5"), Ladder(reduction=2)))
    ids = {"input_ids": torch.tensor([[5, 7]]), "decoder_input_ids": torch.tensor([[0, 3]])}
    with torch.no_grad():
        before = model(**ids).last_hidden_state
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**ids).last_hidden_state, before)
        parts_of(twin)[0].gates[0].add_(1.0)
        assert not torch.equal(twin(**ids).last_hidden_state, before)
        assert torch.equal(model(**ids).last_hidden_state, before)


def test_hidden_states_and_attentions_stay_the_backbones(tiny_encoder: Any) -> None:
    asked: Any = {"input_ids": torch.tensor([[1, 5, 7]]), "output_hidden_states": True, "output_attentions": True}
    bare = tiny_encoder("bert")(**asked)
    found = shaken(attach(tiny_encoder("bert"), Ladder(reduction=2)))(**asked)
    assert len(found.hidden_states) == len(bare.hidden_states)
    for one, other in zip(
        (*found.hidden_states, *found.attentions), (*bare.hidden_states, *bare.attentions), strict=True
    ):
        assert torch.equal(one, other)
    assert not torch.equal(found.last_hidden_state, bare.last_hidden_state)


def test_what_the_side_network_reads_carries_no_gradient(tiny_encoder: Any) -> None:
    """Not even to inputs that ask for one."""
    model = shaken(attach(tiny_encoder("bert"), Ladder(reduction=2, start="published")))
    vectors = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    out = model(inputs_embeds=vectors).last_hidden_state
    assert torch.autograd.grad(out.square().sum(), vectors, allow_unused=True) == (None,)
