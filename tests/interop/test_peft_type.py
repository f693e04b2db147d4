"""The type that dpft registers with HF peft: prepared, saved, loaded, merged and switched by peft itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

import dpft
from dpft.errors import InputError
from dpft.interop.peft_tuner import DPFTConfig
from dpft.peft.method import Method, Wrapper
from dpft.peft.registry import section_of

pytestmark = [
    # peft asks transformers for a name that transformers has renamed, and is unsure of norms; neither is ours.
    # (peft's warning of missing adapter keys stays an error.)
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]


# The type that dpft registers, on a method that any family has.
def configured(model: Any, method: Method | None = None) -> Any:
    return peft.get_peft_model(model, DPFTConfig(method=method or dpft.LoRA(rank=2), seed=3))


def test_get_peft_model_prepares_what_attach_prepares(tiny: Any) -> None:
    method = dpft.LoRA(rank=2)
    ours = dpft.attach(tiny.base("bert"), method, seed=3)
    theirs = configured(tiny.base("bert"), method)
    expected = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    found = {n: p for n, p in theirs.base_model.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_saved_by_peft_loaded_by_peft(tmp_path: Path, tiny: Any) -> None:
    model = tiny.scattered(configured(tiny.base("bert")))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["method"] == section_of(dpft.LoRA(rank=2))
    again = peft.PeftModel.from_pretrained(tiny.base("bert"), str(tmp_path), is_trainable=True)
    tiny.same(tiny.outputs(again), tiny.outputs(model))
    assert sum(p.requires_grad for p in again.parameters()) == 8


def test_a_task_of_pefts_brings_its_head_along(tmp_path: Path, tiny: Any) -> None:
    """peft itself adds the head to modules_to_save."""

    def fresh() -> Any:
        torch.manual_seed(5)
        config = AutoConfig.for_model("bert", vocab_size=23, num_labels=3, **tiny.usual)
        return AutoModelForSequenceClassification.from_config(config).double().eval()

    model = tiny.scattered(peft.get_peft_model(fresh(), DPFTConfig(method=tiny.make("bitfit"), task_type="SEQ_CLS")))
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(fresh(), str(tmp_path))
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, fresh()(ids).logits)
        assert torch.equal(again(ids).logits, model(ids).logits)
    plain = again.merge_and_unload()
    assert plain.state_dict().keys() == fresh().state_dict().keys()
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, model(ids).logits)


def test_an_adapter_can_be_switched_off_and_on(tiny: Any) -> None:
    model = tiny.scattered(configured(tiny.base("bert")))
    on = tiny.outputs(model)
    with model.disable_adapter():
        assert torch.equal(tiny.outputs(model), tiny.outputs(tiny.base("bert")))
    assert torch.equal(tiny.outputs(model), on)
    assert torch.equal(tiny.outputs(model.unload()), tiny.outputs(tiny.base("bert")))


def test_merge_and_unload_leaves_the_base_models_own_modules(tiny: Any) -> None:
    model = tiny.scattered(configured(tiny.base("bert")))
    expected = tiny.outputs(model)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, Wrapper) for m in merged.modules())
    assert merged.state_dict().keys() == tiny.base("bert").state_dict().keys()
    tiny.same(tiny.outputs(merged), expected)


def in_place(tiny: Any) -> Any:
    return configured(tiny.base("bert"), tiny.make("bitfit"))


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "no method": (lambda _: DPFTConfig(), "Expected method"),
    "unknown method": (lambda _: DPFTConfig(method={"name": "loar"}), "loar"),
    "a second adapter": (
        lambda t: configured(t.base("bert")).add_adapter("b", DPFTConfig(method=dpft.LoRA(rank=1))), "fresh copy"
    ),
    "deletion": (lambda t: configured(t.base("bert")).delete_adapter("default"), "load the base model again"),
    "merging for a while": (lambda t: configured(t.base("bert")).merge_adapter(), "merge_and_unload"),
    "meta tensors": (
        lambda t: peft.get_peft_model(t.base("bert"), DPFTConfig(method=dpft.LoRA(rank=1)), low_cpu_mem_usage=True),
        "low_cpu_mem_usage",
    ),
    "switching off what is trained in place": (lambda t: in_place(t).disable_adapter().__enter__(), "switched off"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "names"), REFUSED.values(), ids=REFUSED.keys())
def test_what_peft_can_not_do_with_it_is_refused(act: Callable[[Any], object], names: str, tiny: Any) -> None:
    with pytest.raises(InputError, match=names):
        act(tiny)


def rewrite(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors")

    return act


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a missing name": rewrite(lambda t: t.pop(min(t))),
    "a name too many": rewrite(lambda t: t.update({"base_model.model.pooler.dense.weight": torch.zeros(16, 16)})),
    "another shape": rewrite(lambda t: t.update({min(t): t[min(t)][:1]})),
    "a nan": rewrite(lambda t: t[min(t)].view(-1)[0:1].fill_(float("nan"))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_peft_refuses_damaged_tensors_of_ours(damage: Callable[[Path], None], tmp_path: Path, tiny: Any) -> None:
    """I1: exact names, shapes, finite values."""
    model = tiny.scattered(configured(tiny.base("bert")))
    model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError):
        tiny.loaded("bert", tmp_path)
