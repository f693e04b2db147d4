"""F3: HF peft loads what dpft saves with equal results: every method and family, natively or by dpft's own type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

import dpft
from dpft.errors import InputError
from dpft.interop.peft_tuner import DPFTConfig
from dpft.peft.around import added
from dpft.peft.merge import merge
from dpft.peft.method import Wrapper
from dpft.peft.registry import METHODS, cells, method_from, section_of

pytestmark = [
    # peft asks transformers for a name that transformers has renamed, and is unsure of norms; neither is ours.
    # (peft's warning of missing adapter keys stays an error.)
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]

FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5")
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


# Here two families stand for all; tests/peft/test_matrix.py saves and loads in every cell.
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_peft_loads_every_method_with_equal_results(name: str, family: str, tmp_path: Path, tiny: Any) -> None:
    method = tiny.make(name)
    model = tiny.trained(family, method)
    folder = tiny.saved(model, method, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == NATIVE.get(name, "DPFT")
    again = tiny.loaded(family, folder)
    if name != "head":
        assert not torch.equal(tiny.outputs(model), tiny.outputs(tiny.base(family)))
    tiny.same(tiny.outputs(again), tiny.outputs(model))
    assert not any(p.requires_grad for p in again.parameters())
    assert not any(m.training for m in again.modules())


# Variants whose targets are one family's own; the others go anywhere.
ONLY = {"fused": ("bert",), "parts": ("gpt2",), "one part": ("gpt2",), "parts and a whole": ("gpt2",)}


@pytest.mark.parametrize(("variant", "family"), [(v, f) for v in LORA for f in ONLY.get(v, FAMILIES)])
def test_peft_loads_every_lora_natively(variant: str, family: str, tmp_path: Path, tiny: Any) -> None:
    method = dpft.LoRA(**LORA[variant])
    model = tiny.trained(family, method)
    config = json.loads((tiny.saved(model, method, tmp_path) / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["use_rslora"] == (variant == "rslora" or variant == "one part")
    tiny.same(tiny.outputs(tiny.loaded(family, tmp_path)), tiny.outputs(model))


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
def test_fields_of_a_method_travel_too(section: dict[str, Any], tmp_path: Path, tiny: Any) -> None:
    method = method_from(section)
    model = tiny.trained("bert", method)
    again = tiny.loaded("bert", tiny.saved(model, method, tmp_path))
    tiny.same(tiny.outputs(again), tiny.outputs(model))
    if method.name in ("adapter", "compacter") and not section.get("norms"):
        with again.disable_adapter():
            assert torch.equal(tiny.outputs(again), tiny.outputs(tiny.base("bert")))
        tiny.same(tiny.outputs(again), tiny.outputs(model))


def methods_of_dpft() -> list[str]:
    return [name for name in METHODS if name not in NATIVE]


@pytest.mark.parametrize("name", methods_of_dpft())
def test_tensors_are_what_trains_each_once(name: str, tmp_path: Path, tiny: Any) -> None:
    method = tiny.make(name)
    model = tiny.trained("bert", method)
    stored = load_file(tiny.saved(model, method, tmp_path) / "adapter_model.safetensors")
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = {**trains, **added(model)}  # masks and frozen parts, without which the trained values mean nothing
    assert stored.keys() == {"base_model.model." + n for n in expected}
    assert all(torch.equal(stored["base_model.model." + n], p) for n, p in expected.items())


def test_a_shared_rule_stays_one_object(tmp_path: Path, tiny: Any) -> None:
    """Compacter's rule is used by every layer: stored once, and one object after loading."""
    method = tiny.make("compacter")
    model = tiny.trained("bert", method)
    again = tiny.loaded("bert", tiny.saved(model, method, tmp_path))

    def uses(m: nn.Module) -> list[int]:
        """How many names each shared parameter has."""
        names: dict[int, int] = {}
        for _, p in m.named_parameters(remove_duplicate=False):
            names[id(p)] = names.get(id(p), 0) + 1
        return sorted(n for n in names.values() if n > 1)

    assert uses(model)
    assert uses(again) == uses(model)


@pytest.mark.parametrize("name", METHODS)
def test_heads_travel_as_modules_to_save(name: str, tmp_path: Path, tiny: Any) -> None:
    def fresh() -> Any:
        torch.manual_seed(5)
        config = AutoConfig.for_model("bert", vocab_size=23, num_labels=3, **tiny.usual)
        return AutoModelForSequenceClassification.from_config(config).double().eval()

    method = tiny.make(name)
    model = tiny.scattered(dpft.attach(fresh(), method, train=("classifier",)))
    dpft.save_adapter(model, method, tmp_path, base="tiny", train=("classifier",))
    again = peft.PeftModel.from_pretrained(fresh(), str(tmp_path))
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, fresh()(ids).logits)
        tiny.same(again(ids).logits, model(ids).logits)
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
def test_a_fresh_process_loads_it_whichever_is_imported_first(
    order: tuple[str, str], tmp_path: Path, tiny: Any
) -> None:
    method = tiny.make("compacter")
    model = tiny.trained("bert", method)
    save_file({"it": tiny.outputs(model)}, tiny.saved(model, method, tmp_path) / "expected.safetensors")
    code = FRESH.format(first=order[0], second=order[1], usual=tiny.usual, folder=str(tmp_path))
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.stdout == "same\n", made.stderr


def test_native_formats_need_no_dpft(tmp_path: Path, tiny: Any) -> None:
    method = dpft.LoRA(rank=2)
    model = tiny.trained("bert", method)
    save_file({"it": tiny.outputs(model)}, tiny.saved(model, method, tmp_path) / "expected.safetensors")
    code = FRESH.format(first="peft", second="sys", usual=tiny.usual, folder=str(tmp_path))
    code += "assert 'dpft' not in sys.modules\n"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.stdout == "same\n", made.stderr


def test_modules_that_can_not_travel_alone_are_refused_before_training_and_at_the_latest_here(
    tmp_path: Path, tiny: Any
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=23, **tiny.sizes["gpt2"]))
    method = dpft.LoRA(rank=1)
    dpft.attach(model, method)
    model.lm_head.requires_grad_(True)  # past attach, which refuses it
    with pytest.raises(InputError, match="wte"):
        dpft.save_adapter(model, method, tmp_path / "a", base="tiny", train=("lm_head",))
    method = dpft.LoRA(rank=1, targets=("query",))
    bert = dpft.attach(tiny.base("bert"), method)
    with pytest.raises(InputError, match="adapts a layer"):
        dpft.save_adapter(bert, method, tmp_path / "a", base="tiny", train=("encoder",))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("family", "name"),
    [(c.family, c.method) for c in cells() if c.supported and c.family in FAMILIES and METHODS[c.method].merges],
)
def test_merged_keeps_the_names_of_the_base(family: str, name: str, tiny: Any) -> None:
    model = tiny.trained(family, tiny.make(name))
    expected = tiny.outputs(model)
    merged = merge(model)
    assert not any(isinstance(m, Wrapper) for m in merged.modules())
    assert merged.state_dict().keys() == tiny.base(family).state_dict().keys()
    tiny.same(tiny.outputs(merged), expected)


def test_sections_survive_the_config(tiny: Any) -> None:
    for name in METHODS:
        section = section_of(tiny.make(name))
        assert method_from(json.loads(json.dumps(DPFTConfig(method=section).to_dict()["method"]))) == tiny.make(name)
