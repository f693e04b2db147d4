"""Trainable numbers of every preset: the closed forms of the papers, and the figures that they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from dpft.config.presets import PRESETS
from dpft.errors import InputError
from dpft.models.classifier import TextClassifier
from dpft.peft import DSEE, Adapter, Compacter, PrefixTuning, SparseAdapter, attach
from dpft.peft.method import Method
from dpft.peft.registry import preset

_SIZES: dict[str, tuple[int, int, int]] = {"base": (768, 12, 12), "large": (1024, 24, 16)}
_GPT2: dict[str, tuple[int, int, int]] = {
    "s": (768, 12, 12),
    "m": (1024, 24, 16),
    "l": (1280, 36, 20),
    "xl": (1600, 48, 25),
}


def on_meta(name: str) -> nn.Module:
    """A model of published shape, without memory for its weights."""
    family, _, size = name.partition("-")
    if family == "gpt2":
        d, layers, heads = _GPT2[size]
        config = AutoConfig.for_model("gpt2", n_embd=d, n_layer=layers, n_head=heads)
    elif family == "t5":
        config = AutoConfig.for_model("t5", d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    else:
        d, layers, heads = _SIZES[size]
        config = AutoConfig.for_model(
            family, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * d
        )
    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(config)
    return model


def count(model: nn.Module) -> int:
    """Every Parameter object once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters() if p.requires_grad}.values())


def houlsby(d: int, layers: int, m: int, norms: bool) -> int:
    """Two adapters a layer; two LayerNorms a layer, and that of the embeddings."""
    return 2 * layers * (2 * m * d + d + m) + norms * 2 * d * (2 * layers + 1)


def ladder_of_t5_base(kept: int) -> int:
    """Reduction 8 with ``kept`` blocks in each stack, of which the decoder's attend twice."""
    d, n = 768, 96
    blocks = kept * (4 + 8) * n * n + kept * (8 + 8) * n * n + kept * (2 + 3) * n
    gates, positions, norms = 2 * kept, 2 * 32 * 12, 2 * n
    return blocks + 2 * (kept + 1) * (d * n + n) + n * d + d + gates + norms + positions


# Model, method, closed form in width d and layers L, the figure.
ROWS: list[tuple[str, Method, int, int]] = [
    ("roberta-base", preset("yu2022-adapter"), 4 * 12 * 768 * 48, 1_769_472),
    ("roberta-base", preset("yu2022-adapter", bottleneck=16), 4 * 12 * 768 * 16, 589_824),
    ("roberta-large", preset("yu2022-adapter"), 4 * 24 * 1024 * 48, 4_720_642 - 2050),
    ("roberta-large", preset("yu2022-adapter", bottleneck=16), 4 * 24 * 1024 * 16, 1_574_914 - 2050),
    *(
        (f"roberta-{size}", preset("yu2022-lora", rank=r), 16 * layers * d * r, figure - 2 * d - 2)
        for size, (d, layers, _), figures in (
            ("base", _SIZES["base"], (2_360_834, 1_181_186, 591_362)),
            ("large", _SIZES["large"], (6_293_506, 3_147_778, 1_574_914)),
        )
        for r, figure in zip((16, 8, 4), figures, strict=True)
    ),
    ("roberta-base", preset("yu2022-compacter"), 4 * 12 * (8**3 + 768 + 96), 66_048),
    ("roberta-large", preset("yu2022-compacter"), 4 * 24 * (8**3 + 1024 + 96), 158_722 - 2050),
    ("roberta-base", preset("yu2022-full"), 12 * 12 * 768**2, 84_936_194 - 1538),
    ("roberta-large", preset("yu2022-full"), 12 * 24 * 1024**2, 301_991_938 - 2050),
    *(
        (f"gpt2-{size}", preset("yu2022-lora-gpt2"), 16 * d * layers, figure)
        for (size, (d, layers, _)), figure in zip(_GPT2.items(), (147_456, 393_216, 737_280, 1_228_800), strict=True)
    ),
    *(
        (f"bert-{size}", preset("houlsby2019", bottleneck=m, norms=norms), houlsby(d, layers, m, norms), figure)
        for size, norms, figures in (
            ("base", False, (313_536, 2_379_264, 9_461_760)),
            ("base", True, (351_936, 2_417_664, 9_500_160)),
            ("large", False, (835_968, 6_343_680, 25_227_264)),
            ("large", True, (936_320, 6_444_032, 25_327_616)),
        )
        for (d, layers, _), m, figure in zip(3 * [_SIZES[size]], (8, 64, 256), figures, strict=True)
    ),
    ("bert-base", preset("pfeiffer2020"), 12 * (2 * 48 * 768 + 768 + 48), 894_528),
    ("t5-base", preset("mahabadi2021", norms=False), 48 * (3 * 768 + 3 * 24) + 4**3, 114_112),
    ("t5-base", preset("mahabadi2021"), 48 * (3 * 768 + 3 * 24) + 4**3 + 62 * 768, 161_728),
    ("t5-base", preset("compacter++", norms=False), 24 * (3 * 768 + 3 * 24) + 4**3, 57_088),
    ("t5-base", preset("compacter++"), 24 * (3 * 768 + 3 * 24) + 4**3 + 62 * 768, 104_704),
    ("t5-base", Compacter(shared_rule=False), 48 * (3 * 768 + 3 * 24 + 2 * 4**3), 120_192),
    ("t5-base", preset("lester2021-prompt"), 100 * 768, 76_800),
    ("bert-base", preset("lester2021-prompt", length=20), 20 * 768, 15_360),
    ("t5-base", preset("attempt2022"), 3 * 100 * 768, 230_400),
    ("t5-base", preset("attempt2022", train_norm=True), 3 * 100 * 768 + 2 * 768, 231_936),
    ("t5-base", preset("attempt2022", train_norm=True, tasks=8), (8 + 2) * 100 * 768 + 2 * 768, 8 * 96_192),
    ("bert-base", preset("chen2021-dsee"), 24 * (16 * 2 * 768 + 64), 591_360),
    ("bert-base", preset("chen2021-dsee", nonzeros=16), 24 * (16 * 2 * 768 + 16), 590_208),
    ("gpt2-s", DSEE(nonzeros=16), 12 * (16 * (2 * 768 + 2 * 768) + 2 * 16), 590_208),
    ("bert-base", preset("fang2022-raft"), 13 * 10, 130),
    ("gpt2-s", PrefixTuning(length=10), 12 * 2 * 10 * 768, 184_320),
    ("roberta-base", preset("he2022-sparse-adapter", density=1.0), 24 * (2 * 64 * 768 + 64 + 3 * 768), 2_416_128),
    ("roberta-base", SparseAdapter(64, bias=False, density=1.0), 24 * 2 * 64 * 768, 2_359_296),
    ("roberta-base", preset("he2022-sparse-adapter"), round(0.6 * 2_359_296) + 24 * (64 + 3 * 768), 1_472_410),
    ("roberta-base", preset("he2022-large-sparse"), round(0.15 * 9_437_184) + 24 * (256 + 3 * 768), 1_477_018),
    ("t5-base", preset("sung2022-lst"), ladder_of_t5_base(12), 5_097_240),
    # 3,878,712 as printed, with a gate for each of 24 blocks; six of those are of blocks that are left out
    ("t5-base", preset("sung2022-lst", keep=(1, 2, 3, 5, 6, 7, 9, 10, 11)), ladder_of_t5_base(9), 3_878_712 - 6),
    ("t5-base", Adapter(reduction=32), 48 * (2 * 24 * 768 + 768 + 24), 1_807_488),
    ("t5-base", Adapter(reduction=32, norms=True), 48 * (2 * 24 * 768 + 768 + 24) + 62 * 768, 1_855_104),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "method", "formula", "figure"),
    ROWS,
    ids=[f"{model}-{method.name}-{figure}" for model, method, _, figure in ROWS],
)
def test_trainable_numbers(model: str, method: Method, formula: int, figure: int) -> None:
    assert formula == figure
    attached = attach(on_meta(model), method)
    assert count(attached) == figure
    assert all(p.is_meta for p in attached.parameters())


YU2022 = json.loads((Path(__file__).parent / "yu2022_parameters.json").read_text())["rows"]


@pytest.mark.parametrize("row", YU2022, ids=lambda r: f"{r['model']}-{r['preset']}-{r['trained']}")
def test_figures_of_yu2022(row: dict[str, Any]) -> None:
    model, method = on_meta(row["model"]), preset(row["preset"], **row["fields"])
    if row["classes"]:
        model = TextClassifier(model, row["classes"], "cls", None)
    assert count(attach(model, method, train=("head",) if row["classes"] else ())) == row["trained"]


def ladder(d: int, layers: int, final: bool) -> int:
    """Reduction 8: blocks as the model's own, a gate each, a way down for each and for the embeddings, one way up."""
    n = d // 8
    return layers * (12 * n * n + 13 * n) + layers + (layers + 1) * (d * n + n) + n * d + d + final * 2 * n


def compacter(d: int, layers: int, adapters: int) -> int:
    """n = 4, reduction 32, one rule of 4^3 for all, biases, and the norms of the model."""
    return adapters * layers * (3 * d + 3 * d // 32) + 4**3 + 2 * d * (2 * layers + 1)


def sparse(d: int, layers: int, m: int, density: float) -> int:
    """The share of the weights that is kept; biases and the norm before each adapter whole."""
    return round(density * 4 * layers * m * d) + 2 * layers * (m + 3 * d)


# Closed forms in the width d, the number of layers L, and whether the model is GPT-2.
FORMS: dict[str, Callable[[int, int, bool], int]] = {
    "houlsby2019": lambda d, L, _: houlsby(d, L, 64, True),
    "pfeiffer2020": lambda d, L, _: L * (2 * d * d // 16 + d + d // 16),
    "yu2022-adapter": lambda d, L, _: 4 * 48 * L * d,
    "yu2022-lora": lambda d, L, _: 16 * 16 * L * d,
    "yu2022-lora-gpt2": lambda d, L, _: 4 * 4 * L * d,
    "yu2022-compacter": lambda d, L, _: 4 * L * (8**3 + d + 96),
    "yu2022-full": lambda d, L, _: 12 * L * d * d,
    "mahabadi2021": lambda d, L, _: compacter(d, L, 2),
    "compacter++": lambda d, L, _: compacter(d, L, 1),
    "chen2021-dsee": lambda d, L, _: 2 * L * (16 * 2 * d + 64),
    "lester2021-prompt": lambda d, L, _: 100 * d,
    "attempt2022": lambda d, L, _: 3 * 100 * d,
    "he2022-sparse-adapter": lambda d, L, _: sparse(d, L, 64, 0.6),
    "he2022-large-sparse": lambda d, L, _: sparse(d, L, 256, 0.15),
    "fang2022-raft": lambda d, L, gpt2: 10 * (L + (not gpt2)),  # RoBERTa's pooler has one as well
    "sung2022-lst": lambda d, L, gpt2: ladder(d, L, gpt2),  # GPT-2 ends in a norm
}
# n = 4 does not divide 1600 / 32; the other names layers that RoBERTa has not.
REFUSED = {("mahabadi2021", "gpt2-xl"), ("compacter++", "gpt2-xl")} | {
    ("yu2022-lora-gpt2", f"roberta-{size}") for size in _SIZES
}
SHAPES = {**{f"roberta-{k}": v[:2] for k, v in _SIZES.items()}, **{f"gpt2-{k}": v[:2] for k, v in _GPT2.items()}}
_SECONDS = ("he2022-sparse-adapter", "he2022-large-sparse")  # a mask is drawn, also without weights


def _slow(name: str, model: str) -> bool:
    """Every size of the methods of the first papers, the small ones of all others; the rest with the slow tests."""
    first = name.startswith(("yu2022", "houlsby", "pfeiffer"))
    return not first and model not in ("roberta-base", "gpt2-s") and (name in _SECONDS or model != "roberta-large")


EVERY = [
    pytest.param(name, model, marks=pytest.mark.slow if _slow(name, model) else (), id=f"{name}-{model}")
    for name in FORMS
    for model in SHAPES
]


@pytest.mark.parametrize(("name", "model"), EVERY)
def test_every_preset_on_every_shape(name: str, model: str) -> None:
    if (name, model) in REFUSED:
        with pytest.raises(InputError, match=r"c_attn|to divide 1600"):
            attach(on_meta(model), preset(name))
        return
    d, layers = SHAPES[model]
    assert count(attach(on_meta(model), preset(name))) == FORMS[name](d, layers, model.startswith("gpt2"))


def test_every_preset_has_a_closed_form() -> None:
    assert set(FORMS) == set(PRESETS)


@pytest.mark.parametrize(("size", "total"), [("base", 1_771_010), ("large", 4_720_642)])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_adds_a_row_and_a_bias_a_class(size: str, total: int, classes: int) -> None:
    model = TextClassifier(on_meta(f"roberta-{size}"), classes, "cls", None)
    d = _SIZES[size][0]
    assert count(attach(model, preset("yu2022-adapter"), train=("head",))) == total + (classes - 2) * (d + 1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_counted(name: str) -> None:
    assert preset(name) in [method for _, method, _, _ in ROWS]
