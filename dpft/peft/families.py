"""Where each model family lets a method attach: one row a family, all in one table.

Names are relative to a transformer block, as globs over dotted module names; ``blocks`` are the module lists
that hold the blocks. "proj" is the Linear that ends a sublayer, "out" the last module before the residual sum
(its dropout, where it has one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from dpft.errors import InputError
from dpft.peft.around import Around

Role = Literal[
    "query", "key", "value", "attention_proj", "attention_out", "ffn_in", "ffn_proj", "ffn_out", "activation"
]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One row. ``model_type`` is HF's; ``fused`` is the number of equal parts (query, key, value) that the
    modules under ``query`` hold in one weight, 1 where they are apart. ``biases``: the family's published models
    have any; ``tokens``: its input is token ids that look up rows of a table. ``embedded`` is the module of the
    backbone whose output the first block gets, with all that is added to it; empty where there is none.
    ``first_token``: the first token stands for the whole input ([CLS]); ``interface``: its attention is transformers'
    ``AttentionInterface``, through which it can be given further keys and values."""

    model_type: str
    blocks: tuple[str, ...]
    query: str
    key: str
    value: str
    attention_proj: str
    attention_out: str
    ffn_in: str
    ffn_proj: str
    ffn_out: str
    activation: str
    embedded: str
    lora: tuple[str, ...]
    fused: int = 1
    biases: bool = True
    tokens: bool = True
    first_token: bool = True
    interface: bool = True
    note: str = ""


def _bert(
    model_type: str, suffix: str = "", embedded: str = "embeddings", note: str = "", interface: bool = True
) -> Family:
    """BERT and its descendants, which kept its names."""
    query, key, value = (f"attention.self.{part}{suffix}" for part in ("query", "key", "value"))
    return Family(
        model_type, ("encoder.layer",), query, key, value, "attention.output.dense", "attention.output.dropout",
        "intermediate.dense", "output.dense", "output.dropout", "intermediate.intermediate_act_fn", embedded,
        (f"query{suffix}", f"value{suffix}"), interface=interface, note=note,
    )  # fmt: skip


_TABLE = "query_proj and key_proj also run on the table of relative positions; the gradients of both uses are added"

FAMILIES: Mapping[str, Family] = {
    f.model_type: f
    for f in (
        _bert("bert"),
        _bert("roberta"),
        _bert("electra", embedded="embeddings"),
        _bert("deberta-v2", suffix="_proj", note=_TABLE, interface=False),
        Family(
            "mpnet", ("encoder.layer",), "attention.attn.q", "attention.attn.k", "attention.attn.v",
            "attention.attn.o", "attention.dropout", "intermediate.dense", "output.dense", "output.dropout",
            "intermediate.intermediate_act_fn", "embeddings", ("q", "v"), interface=False,
        ),
        Family(
            "distilbert", ("transformer.layer",), "attention.q_lin", "attention.k_lin", "attention.v_lin",
            "attention.out_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2", "ffn.dropout", "ffn.activation",
            "embeddings", ("q_lin", "v_lin"),
        ),
        Family(
            "modernbert", ("layers",), "attn.Wqkv", "attn.Wqkv", "attn.Wqkv", "attn.Wo", "attn.out_drop",
            "mlp.Wi", "mlp.Wo", "mlp.Wo", "mlp.act", "embeddings", ("Wqkv",), fused=3, biases=False,
        ),
        Family(
            "gpt2", ("h",), "attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj", "attn.resid_dropout",
            "mlp.c_fc", "mlp.c_proj", "mlp.dropout", "mlp.act", "drop", ("c_attn",), fused=3, first_token=False,
        ),
        Family(
            "llama", ("layers",), "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "self_attn.o_proj", "mlp.[gu]*_proj", "mlp.down_proj", "mlp.down_proj", "mlp.act_fn", "embed_tokens",
            ("q_proj", "v_proj"),
            biases=False, first_token=False,
        ),
        Family(
            "t5", ("encoder.block", "decoder.block"), "layer.*Attention.q", "layer.*Attention.k",
            "layer.*Attention.v", "layer.*.SelfAttention.o", "layer.*.SelfAttention.o", "layer.*.DenseReluDense.wi*",
            "layer.*.DenseReluDense.wo", "layer.*.DenseReluDense.wo", "layer.*.DenseReluDense.act", "", ("q", "v"),
            biases=False, first_token=False,
            note="adapters stand beside self-attention and feed-forward, not beside cross-attention",
        ),
        Family(
            "vit", ("layers",), "attention.q_proj", "attention.k_proj", "attention.v_proj",
            "attention.o_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2", "mlp.fc2", "mlp.activation_fn", "embeddings",
            ("q_proj", "v_proj"),
            tokens=False,
        ),
    )
}  # fmt: skip


# Families whose modules have the names of another's row: HF's name -> that row's.
ALIASES: Mapping[str, str] = {
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma": "llama",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "mt5": "t5",
    "deit": "vit",
}


def model_type(model: nn.Module) -> str:
    """The name of the model's row; where it has none HF's name of its family, or ``unknown``."""
    own = str(getattr(getattr(model, "config", None), "model_type", "unknown"))
    return ALIASES.get(own, own)


class NoRowError(InputError):
    """The model's family has no row. The message is for methods whose targets can be named."""


def family_of(model: nn.Module) -> Family:
    """The model's row; :class:`NoRowError` that says what to do for a family without one."""
    found = FAMILIES.get(model_type(model))
    if found is None:
        endings = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if is_linear(m)})
        raise NoRowError(
            f"Expected method.targets for the model family {model_type(model)!r}, which has no row in the table. Name "
            "the modules to adapt by their last components; this model's Linear layers: "
            f"{', '.join(endings) or 'none'}."
        )
    return found


def backbone(model: nn.Module) -> nn.Module:
    """The pretrained part of ``model``, without a task head on top; the model itself where nothing tells them apart.

    Every HF model knows its own (``base_model``), also inside another module."""
    return next((m.base_model for m in model.modules() if hasattr(m, "base_model_prefix")), model)  # type: ignore[return-value]


def is_linear(module: nn.Module) -> bool:
    """A Linear, or the Conv1D that GPT-2 has in its place."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def blocks_of(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """The model's own stacks (one, or encoder and decoder) of named transformer blocks, in order."""
    family = family_of(model)
    beside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Around))
    stacks = [
        [(f"{name}.{i}", block) for i, block in enumerate(module)]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and any(name == b or name.endswith("." + b) for b in family.blocks)
        and not name.startswith(beside)
    ]
    if not stacks:
        raise InputError(f"Expected a {family.model_type} model with blocks under {family.blocks[-1]!r}, found none.")
    return stacks


def at(model: nn.Module, *roles: Role) -> list[tuple[str, nn.Module]]:
    """The modules that play one of ``roles`` in any block, in the model's order, each once."""
    family = family_of(model)
    globs = [getattr(family, role) for role in roles]
    found = []
    for name, block in (pair for stack in blocks_of(model) for pair in stack):
        for inner, module in block.named_modules():
            if any(fnmatchcase(inner, glob) for glob in globs):
                found.append((f"{name}.{inner}", module))
    if not found:
        raise InputError(f"This {family.model_type} model has no module {globs[0]!r} in its blocks.")
    return found


def rows() -> Iterator[dict[str, object]]:
    """The table as plain values, for display."""
    return ({f.name: getattr(family, f.name) for f in fields(family)} for family in FAMILIES.values())
