"""Trainable numbers of every preset: the closed forms of the papers, and the figures that they print."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from dpft.config.presets import PRESETS
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


@pytest.mark.parametrize(("size", "total"), [("base", 1_771_010), ("large", 4_720_642)])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_adds_a_row_and_a_bias_a_class(size: str, total: int, classes: int) -> None:
    model = TextClassifier(on_meta(f"roberta-{size}"), classes, "cls", None)
    d = _SIZES[size][0]
    assert count(attach(model, preset("yu2022-adapter"), train=("head",))) == total + (classes - 2) * (d + 1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_counted(name: str) -> None:
    assert preset(name) in [method for _, method, _, _ in ROWS]
