"""F3: HF peft loads what dpft saves with equal results: every method and family, natively or by dpft's own type."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import dpft
from dpft.errors import InputError
from dpft.interop.peft_tuner import DPFTConfig
from dpft.peft.around import added
from dpft.peft.merge import merge
from dpft.peft.method import Method, Wrapper
from dpft.peft.registry import METHODS, cells, method_from, section_of

pytestmark = [
    # peft asks transformers for a name that transformers has renamed, and is unsure of norms; neither is ours.
    # (peft's warning of missing adapter keys stays an error.)
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]

FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5")
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
}
USUAL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16,
}  # fmt: skip

# What a method needs beside its defaults, on models this small.
FIELDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "alpha": 3.0},
    "adapter": {"bottleneck": 4},
    "compacter": {"bottleneck": 4, "n": 2},
    "tokens": {"tokens": (3, 5)},
    "prompt": {"length": 3},
    "prefix": {"length": 3},
    "attempt": {"count": 2, "length": 3, "width": 4, "temperature": 2.0},
    "dsee": {"rank": 2, "nonzeros": 5},
    "sparse-adapter": {"bottleneck": 4},
}
LORA: dict[str, dict[str, Any]] = {
    "no alpha": {"rank": 3},
    "rslora": {"rank": 3, "alpha": 2.0, "rslora": True},
    "frozen a": {"rank": 2, "freeze_a": True},
    "fused": {"rank": 2, "targets": ("query", "key", "value"), "fuse_qkv": True},
    "all linear": {"rank": 2, "alpha": 7.5, "targets": ("all-linear",)},
    "parts": {"rank": 2, "alpha": 3.0, "targets": ("c_attn:q", "c_attn:v")},
    "one part": {"rank": 2, "rslora": True, "alpha": 3.0, "targets": ("c_attn:k",)},
    "parts and a whole": {"rank": 2, "rslora": True, "alpha": 3.0, "targets": ("c_attn:q", "c_attn:v", "mlp.c_proj")},
}
NATIVE = {"lora": "LORA", "ia3": "IA3", "norms": "LN_TUNING"}


def make(name: str, **fields: Any) -> Method:
    """The method with small fields, those it has."""
    cls = METHODS[name]
    return cls(**{k: v for k, v in (fields or FIELDS.get(name, {})).items() if k in cls.__dataclass_fields__})  # type: ignore[attr-defined]


def base(family: str, seed: int = 0) -> Any:
    """A tiny model, float64: the same weights for the same seed."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, vocab_size=23, pad_token_id=0, **SIZES.get(family, USUAL))
    return AutoModel.from_config(config).double().eval()


def scattered(model: nn.Module) -> nn.Module:
    """Every trained value moved."""
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=g).to(p))
    return model


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    ids = torch.randint(1, 23, (3, 6), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = ids[:, :4]
    found: Tensor = model(**inputs).last_hidden_state
    return found


def trained(family: str, method: Method) -> Any:
    model = base(family)
    if method.name == "head":
        return model.requires_grad_(False)  # nothing of the encoder trains; an empty adapter is an adapter
    return scattered(dpft.attach(model, method))


def saved(model: Any, method: Method, folder: Path) -> Path:
    dpft.save_adapter(model, method, folder, base="tiny")
    return folder


def loaded(family: str, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(base(family), str(folder))


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# Here two families stand for all; tests/peft/test_matrix.py saves and loads in every cell.
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_peft_loads_every_method_with_equal_results(name: str, family: str, tmp_path: Path) -> None:
    method = make(name)
    model = trained(family, method)
    folder = saved(model, method, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == NATIVE.get(name, "DPFT")
    again = loaded(family, folder)
    if name != "head":
        assert not torch.equal(outputs(model), outputs(base(family)))
    same(outputs(again), outputs(model))
    assert not any(p.requires_grad for p in again.parameters())
    assert not any(m.training for m in again.modules())


# Variants whose targets are one family's own; the others go anywhere.
ONLY = {"fused": ("bert",), "parts": ("gpt2",), "one part": ("gpt2",), "parts and a whole": ("gpt2",)}


@pytest.mark.parametrize(("variant", "family"), [(v, f) for v in LORA for f in ONLY.get(v, FAMILIES)])
def test_peft_loads_every_lora_natively(variant: str, family: str, tmp_path: Path) -> None:
    method = dpft.LoRA(**LORA[variant])
    model = trained(family, method)
    config = json.loads((saved(model, method, tmp_path) / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["use_rslora"] == (variant == "rslora" or variant == "one part")
    same(outputs(loaded(family, tmp_path)), outputs(model))


VARIANTS: dict[str, dict[str, Any]] = {
    "own rules": {"name": "compacter", "n": 2, "bottleneck": 4, "shared_rule": False, "init": "yu"},
    "norms as well": {"name": "adapter", "bottleneck": 4, "norms": True, "before_dropout": True},
    "one inside another": {
        "name": "adapter",
        "bottleneck": 4,
        "targets": ["attention.output", "attention.output.dense"],
    },
    "some of ia3": {"name": "ia3", "targets": ["query"], "feedforward": ["attention.output.dense"]},
    "chosen layers in full": {"name": "full", "targets": ["query"], "biases": False},
}


@pytest.mark.parametrize("section", VARIANTS.values(), ids=VARIANTS.keys())
def test_fields_of_a_method_travel_too(section: dict[str, Any], tmp_path: Path) -> None:
    method = method_from(section)
    model = trained("bert", method)
    again = loaded("bert", saved(model, method, tmp_path))
    same(outputs(again), outputs(model))
    if method.name in ("adapter", "compacter") and not section.get("norms"):
        with again.disable_adapter():
            assert torch.equal(outputs(again), outputs(base("bert")))
        same(outputs(again), outputs(model))


def methods_of_dpft() -> list[str]:
    return [name for name in METHODS if name not in NATIVE]


@pytest.mark.parametrize("name", methods_of_dpft())
def test_tensors_are_what_trains_each_once(name: str, tmp_path: Path) -> None:
    method = make(name)
    model = trained("bert", method)
    stored = load_file(saved(model, method, tmp_path) / "adapter_model.safetensors")
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = {**trains, **added(model)}  # masks and frozen parts, without which the trained values mean nothing
    assert stored.keys() == {"base_model.model." + n for n in expected}
    assert all(torch.equal(stored["base_model.model." + n], p) for n, p in expected.items())


def test_a_shared_rule_stays_one_object(tmp_path: Path) -> None:
    """Compacter's rule is used by every layer: stored once, and one object after loading."""
    method = make("compacter")
    model = trained("bert", method)
    again = loaded("bert", saved(model, method, tmp_path))

    def uses(m: nn.Module) -> list[int]:
        """How many names each shared parameter has."""
        names: dict[int, int] = {}
        for _, p in m.named_parameters(remove_duplicate=False):
            names[id(p)] = names.get(id(p), 0) + 1
        return sorted(n for n in names.values() if n > 1)

    assert uses(model)
    assert uses(again) == uses(model)


@pytest.mark.parametrize("name", METHODS)
def test_heads_travel_as_modules_to_save(name: str, tmp_path: Path) -> None:
    def fresh() -> Any:
        torch.manual_seed(5)
        config = AutoConfig.for_model("bert", vocab_size=23, num_labels=3, **USUAL)
        return AutoModelForSequenceClassification.from_config(config).double().eval()

    method = make(name)
    model = scattered(dpft.attach(fresh(), method, train=("classifier",)))
    dpft.save_adapter(model, method, tmp_path, base="tiny", train=("classifier",))
    again = peft.PeftModel.from_pretrained(fresh(), str(tmp_path))
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, fresh()(ids).logits)
        same(again(ids).logits, model(ids).logits)
    again.save_pretrained(tmp_path / "again", save_embedding_layers=False)  # "auto" asks the hub
    one, two = (load_file(f / "adapter_model.safetensors") for f in (tmp_path, tmp_path / "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)


FRESH = """
import {first}
import {second}
import sys, torch, warnings
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
torch.manual_seed(0)
config = AutoConfig.for_model("bert", vocab_size=23, pad_token_id=0, **{usual!r})
model = peft.PeftModel.from_pretrained(AutoModel.from_config(config).double().eval(), {folder!r})
ids = torch.randint(1, 23, (3, 6), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
torch.testing.assert_close(found, load_file({folder!r} + "/expected.safetensors")["it"], rtol=1e-12, atol=1e-12)
print("same")
"""


@pytest.mark.parametrize("order", [("dpft", "peft"), ("peft", "dpft")], ids=" then ".join)
def test_a_fresh_process_loads_it_whichever_is_imported_first(order: tuple[str, str], tmp_path: Path) -> None:
    method = make("compacter")
    model = trained("bert", method)
    save_file({"it": outputs(model)}, saved(model, method, tmp_path) / "expected.safetensors")
    code = FRESH.format(first=order[0], second=order[1], usual=USUAL, folder=str(tmp_path))
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.stdout == "same\n", made.stderr


def test_native_formats_need_no_dpft(tmp_path: Path) -> None:
    method = dpft.LoRA(rank=2)
    model = trained("bert", method)
    save_file({"it": outputs(model)}, saved(model, method, tmp_path) / "expected.safetensors")
    code = FRESH.format(first="peft", second="sys", usual=USUAL, folder=str(tmp_path))
    code += "assert 'dpft' not in sys.modules\n"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.stdout == "same\n", made.stderr


# The type that dpft registers, on a method that any family has.
def configured(model: Any, method: Method | None = None) -> Any:
    return peft.get_peft_model(model, DPFTConfig(method=method or dpft.LoRA(rank=2), seed=3))


def test_get_peft_model_prepares_what_attach_prepares() -> None:
    method = dpft.LoRA(rank=2)
    ours = dpft.attach(base("bert"), method, seed=3)
    theirs = configured(base("bert"), method)
    expected = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    found = {n: p for n, p in theirs.base_model.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_saved_by_peft_loaded_by_peft(tmp_path: Path) -> None:
    model = scattered(configured(base("bert")))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["method"] == section_of(dpft.LoRA(rank=2))
    again = peft.PeftModel.from_pretrained(base("bert"), str(tmp_path), is_trainable=True)
    same(outputs(again), outputs(model))
    assert sum(p.requires_grad for p in again.parameters()) == 8


def test_a_task_of_pefts_brings_its_head_along(tmp_path: Path) -> None:
    """peft itself adds the head to modules_to_save."""

    def fresh() -> Any:
        torch.manual_seed(5)
        config = AutoConfig.for_model("bert", vocab_size=23, num_labels=3, **USUAL)
        return AutoModelForSequenceClassification.from_config(config).double().eval()

    model = scattered(peft.get_peft_model(fresh(), DPFTConfig(method=make("bitfit"), task_type="SEQ_CLS")))
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


def test_an_adapter_can_be_switched_off_and_on() -> None:
    model = scattered(configured(base("bert")))
    on = outputs(model)
    with model.disable_adapter():
        assert torch.equal(outputs(model), outputs(base("bert")))
    assert torch.equal(outputs(model), on)
    assert torch.equal(outputs(model.unload()), outputs(base("bert")))


def test_merge_and_unload_leaves_the_base_models_own_modules() -> None:
    model = scattered(configured(base("bert")))
    expected = outputs(model)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, Wrapper) for m in merged.modules())
    assert merged.state_dict().keys() == base("bert").state_dict().keys()
    same(outputs(merged), expected)


def in_place() -> Any:
    return configured(base("bert"), make("bitfit"))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no method": (lambda: DPFTConfig(), "Expected method"),
    "unknown method": (lambda: DPFTConfig(method={"name": "loar"}), "loar"),
    "a second adapter": (
        lambda: configured(base("bert")).add_adapter("b", DPFTConfig(method=dpft.LoRA(rank=1))), "fresh copy"
    ),
    "deletion": (lambda: configured(base("bert")).delete_adapter("default"), "load the base model again"),
    "merging for a while": (lambda: configured(base("bert")).merge_adapter(), "merge_and_unload"),
    "meta tensors": (
        lambda: peft.get_peft_model(base("bert"), DPFTConfig(method=dpft.LoRA(rank=1)), low_cpu_mem_usage=True),
        "low_cpu_mem_usage",
    ),
    "switching off what is trained in place": (lambda: in_place().disable_adapter().__enter__(), "switched off"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "names"), REFUSED.values(), ids=REFUSED.keys())
def test_what_peft_can_not_do_with_it_is_refused(act: Callable[[], object], names: str) -> None:
    with pytest.raises(InputError, match=names):
        act()


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
def test_peft_refuses_damaged_tensors_of_ours(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """I1: exact names, shapes, finite values."""
    model = scattered(configured(base("bert")))
    model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError):
        loaded("bert", tmp_path)


def test_modules_that_can_not_travel_alone_are_refused_before_training_and_at_the_latest_here(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=23, **SIZES["gpt2"]))
    method = dpft.LoRA(rank=1)
    dpft.attach(model, method)
    model.lm_head.requires_grad_(True)  # past attach, which refuses it
    with pytest.raises(InputError, match="wte"):
        dpft.save_adapter(model, method, tmp_path / "a", base="tiny", train=("lm_head",))
    method = dpft.LoRA(rank=1, targets=("query",))
    bert = dpft.attach(base("bert"), method)
    with pytest.raises(InputError, match="adapts a layer"):
        dpft.save_adapter(bert, method, tmp_path / "a", base="tiny", train=("encoder",))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("family", "name"),
    [(c.family, c.method) for c in cells() if c.supported and c.family in FAMILIES and METHODS[c.method].merges],
)
def test_merged_keeps_the_names_of_the_base(family: str, name: str) -> None:
    model = trained(family, make(name))
    expected = outputs(model)
    merged = merge(model)
    assert not any(isinstance(m, Wrapper) for m in merged.modules())
    assert merged.state_dict().keys() == base(family).state_dict().keys()
    same(outputs(merged), expected)


def test_sections_survive_the_config() -> None:
    for name in METHODS:
        section = section_of(make(name))
        assert method_from(json.loads(json.dumps(DPFTConfig(method=section).to_dict()["method"]))) == make(name)
