"""What each cell of the matrix trains: names and numbers, written down by hand from the papers and the models' sizes.

The models are those of conftest: width d = 16, two blocks (T5: two and two), feed-forward of f = 24 (GPT-2: 64), two
heads, 23 tokens. Electra's embeddings have 12 numbers; Llama's keys and values 8.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from dpft.peft import attach
from dpft.peft.registry import cells, method_from

D, F = 16, 24


class Names(NamedTuple):
    """Of one family, within a block: regular expressions."""

    query: str
    key: str
    value: str
    attention: str  # where an adapter stands behind attention
    ffn: str  # where one stands behind the feed-forward
    down: str  # the second layer of the feed-forward
    activation: str
    attends: str  # the module that attends


_BERT = Names(
    r"attention\.self\.query", r"attention\.self\.key", r"attention\.self\.value", r"attention\.output\.dropout",
    r"output\.dropout", r"output\.dense", r"intermediate\.intermediate_act_fn", r"attention\.self",
)  # fmt: skip
NAMES = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "deberta-v2": _BERT._replace(
        query=r"attention\.self\.query_proj", key=r"attention\.self\.key_proj", value=r"attention\.self\.value_proj"
    ),
    "mpnet": _BERT._replace(
        query=r"attention\.attn\.q", key=r"attention\.attn\.k", value=r"attention\.attn\.v",
        attention=r"attention\.dropout", attends=r"attention\.attn",
    ),
    "distilbert": Names(
        r"attention\.q_lin", r"attention\.k_lin", r"attention\.v_lin", r"attention\.out_lin", r"ffn\.dropout",
        r"ffn\.lin2", r"ffn\.activation", "attention",
    ),
    "modernbert": Names(
        *3 * [r"attn\.Wqkv"], r"attn\.out_drop", r"mlp\.Wo", r"mlp\.Wo", r"mlp\.act", "attn",
    ),
    "gpt2": Names(
        *3 * [r"attn\.c_attn"], r"attn\.resid_dropout", r"mlp\.dropout", r"mlp\.c_proj", r"mlp\.act", "attn",
    ),
    "llama": Names(
        r"self_attn\.q_proj", r"self_attn\.k_proj", r"self_attn\.v_proj", r"self_attn\.o_proj", r"mlp\.down_proj",
        r"mlp\.down_proj", r"mlp\.act_fn", "self_attn",
    ),
    "t5": Names(
        r"layer\.\d\.(Self|EncDec)Attention\.q", r"layer\.\d\.(Self|EncDec)Attention\.k",
        r"layer\.\d\.(Self|EncDec)Attention\.v", r"layer\.0\.SelfAttention\.o", r"layer\.\d\.DenseReluDense\.wo",
        r"layer\.\d\.DenseReluDense\.wo", r"layer\.\d\.DenseReluDense\.act", r"layer\.\d\.(Self|EncDec)Attention",
    ),
    "vit": Names(
        r"attention\.q_proj", r"attention\.k_proj", r"attention\.v_proj", r"attention\.o_proj", r"mlp\.fc2",
        r"mlp\.fc2", r"mlp\.activation_fn", "attention",
    ),
}  # fmt: skip
FUSED = ("gpt2", "modernbert")
BLOCK = r"(.*\.)?(layer|layers|h|block)\.\d\."


class Golden(NamedTuple):
    names: str
    tensors: int
    numbers: int


def _blocks(family: str) -> int:
    return 4 if family == "t5" else 2


def _attentions(family: str) -> int:
    return 6 if family == "t5" else 2  # two of the encoder, four of the decoder


def _low_rank(family: str, more: int = 0) -> int:
    """Rank 3 on query and value; of a fused projection on the whole (which costs as much as here two)."""
    value = 8 if family == "llama" else D
    pairs = 3 * (D + 3 * D) if family in FUSED else 3 * (2 * D) + 3 * (D + value)
    return _attentions(family) * (pairs + more)


def lora(family: str) -> Golden:
    n, layers = NAMES[family], 1 if family in FUSED else 2
    return Golden(
        rf"{BLOCK}({n.query}|{n.value})\.lora_[AB]\.weight", 2 * layers * _attentions(family), _low_rank(family)
    )


def dsee(family: str) -> Golden:
    """Of a fused projection the two thirds, A's one below the other: [6, d], two B's of [d, 3]. Ten single weights."""
    n, fused = NAMES[family], family in FUSED
    part = r"(lora_A\.weight|lora_B(\.\d)?\.weight|values)"
    return Golden(
        rf"{BLOCK}({n.query}|{n.value})\.{part}", (4 if fused else 6) * _attentions(family), _low_rank(family, 10)
    )


def ia3(family: str) -> Golden:
    n, fused = NAMES[family], family in FUSED
    scaled = 3 * D if fused else 2 * (8 if family == "llama" else D)
    inner = 4 * D if family == "gpt2" else F
    tensors = _attentions(family) * (1 if fused else 2) + _blocks(family)
    numbers = _attentions(family) * scaled + _blocks(family) * inner
    return Golden(rf"{BLOCK}({n.key}|{n.value}|{n.down})\.ia3_l", tensors, numbers)


def _beside(family: str, parts: str) -> str:
    n = NAMES[family]
    return rf"{BLOCK}({n.attention}|{n.ffn})\.adapter_(down|up)\.({parts})"


def adapter(family: str) -> Golden:
    count = 2 * _blocks(family)
    return Golden(_beside(family, "weight|bias"), 4 * count, count * (2 * 4 * D + D + 4))


def sparse_adapter(family: str) -> Golden:
    """Half of the weights."""
    count = 2 * _blocks(family)
    return Golden(_beside(family, "values|bias"), 4 * count, count * (4 * D + D + 4))


def compacter(family: str) -> Golden:
    """n = 2, bottleneck 4: s [2, I/2], t [2, O/2] and a bias a layer, and one rule."""
    count = 2 * _blocks(family)
    return Golden(_beside(family, "rule|s|t|bias"), 6 * count + 1, count * (2 * (D + 4) + D + 4) + 2**3)


def bitfit(family: str) -> Golden:
    block = 4 * D + F + D + 2 * D  # query to projection, feed-forward, two norms
    tensors, numbers = {
        "bert": (2 + 16, D + 2 * block + D),  # embeddings' norm, and the pooler
        "roberta": (1 + 16, D + 2 * block),
        "electra": (2 + 16, 12 + D + 2 * block),  # the norm of 12, and the projection to 16
        "deberta-v2": (2 + 16, 2 * D + 2 * block),  # the norm of the table of relative positions too
        "mpnet": (1 + 16, D + 2 * block),
        "distilbert": (1 + 16, D + 2 * block),
        "gpt2": (1 + 12, D + 2 * (3 * D + D + 4 * D + D + 2 * D)),
        "vit": (2 + 16, 2 * D + 2 * block),  # patches, and the norm at the end
    }[family]
    return Golden(r".*\.bias", tensors, numbers)


def norms(family: str) -> Golden:
    names = r"(.*\.)?(LayerNorm|layernorm\w*|\w*norm|ln_\w)\.(weight|bias)"
    one = (D, 1) if family in ("llama", "t5", "modernbert") else (2 * D, 2)  # a scale, or a scale and a shift
    count = {"deberta-v2": 6, "t5": 5 + 7}.get(family, 5)
    return Golden(names, count * one[1], count * one[0] - (8 if family == "electra" else 0))


def last_k(family: str) -> Golden:
    """The last block; of T5 the decoder's."""
    bert = (16, 4 * (D * D + D) + D * F + F + F * D + D + 4 * D)
    tensors, numbers = {
        "modernbert": (6, 3 * D * D + D * D + 2 * D * F + F * D + 2 * D),
        "gpt2": (12, 12 * D * D + 13 * D),
        "llama": (9, 2 * D * D + 2 * 8 * D + 3 * D * F + 2 * D),
        "t5": (13, 8 * D * D + 2 * D * F + 3 * D),
    }.get(family, bert)
    stack = r"decoder\.block" if family == "t5" else "(layer|layers|h)"
    return Golden(rf"(.*\.)?{stack}\.1\..*", tensors, numbers)


def ladder(family: str) -> Golden:
    """Half as wide: blocks of the model's own kind, a gate each, ways down from each and the embeddings, one up."""
    n, f = D // 2, F // 2
    block = 4 * (n * n + n) + n * f + f + f * n + n + 4 * n
    inside = {
        "deberta-v2": 2 * block + 2 * n + 8 * n,  # norm and table of relative positions
        "mpnet": 2 * block + 32 * 2,  # 32 buckets of two heads
        "vit": 2 * block + 2 * n,
        "modernbert": 2 * (4 * n * n + 3 * n * f) + 4 * n,  # the first block has no norm before attention
        "gpt2": 2 * (12 * n * n + 13 * n) + 2 * n,
        "llama": 2 * (2 * n * n + 2 * n * n // 2 + 3 * n * f + 2 * n) + n,
        "t5": 2 * (4 * n * n + 2 * n * f + 2 * n) + 2 * (8 * n * n + 2 * n * f + 3 * n) + 2 * n + 2 * 32 * 2,
    }.get(family, 2 * block)
    stacks = 2 if family == "t5" else 1
    tensors = {"deberta-v2": 45, "mpnet": 43, "vit": 44, "modernbert": 22, "gpt2": 36, "llama": 29, "t5": 64}
    numbers = inside + stacks * (2 + 3 * (D * n + n)) + n * D + D
    return Golden(r".*ladder\..*", tensors.get(family, 2 * 16 + 2 + 2 * 3 + 2), numbers)


def prompt(family: str) -> Golden:
    return Golden(r".*soft_prompt\.prompt", 1, 3 * (12 if family == "electra" else D))


def attempt(family: str) -> Golden:
    """A prompt of three, a way down to four and up, and a norm."""
    d = 12 if family == "electra" else D
    return Golden(r".*soft_prompt\.(prompt|(down|up)\.weight|norm\.(weight|bias))", 5, 3 * d + 2 * 4 * d + 2 * d)


def prefix(family: str) -> Golden:
    width = 8 if family == "llama" else D
    count = _attentions(family)
    return Golden(rf"{BLOCK}{NAMES[family].attends}\.prefix\.prefix", count, count * 2 * 3 * width)


def raft(family: str) -> Golden:
    """Six and four coefficients; BERT's pooler has a function too."""
    count = _blocks(family) + (family == "bert")
    where = rf"{BLOCK}{NAMES[family].activation}|bert\.pooler\.activation"
    return Golden(rf"({where})\.(numerator|denominator)", 2 * count, 10 * count)


def tokens(family: str) -> Golden:
    return Golden(
        r".*(word_embeddings|tok_embeddings|wte|embed_tokens|shared)\.rows\.weight", 1, prompt(family).numbers
    )


GOLDEN: dict[str, Callable[[str], Golden]] = {
    "lora": lora, "dsee": dsee, "ia3": ia3, "adapter": adapter, "sparse-adapter": sparse_adapter,
    "compacter": compacter, "bitfit": bitfit, "norms": norms, "last-k": last_k, "lst": ladder, "prompt": prompt,
    "attempt": attempt, "prefix": prefix, "raft": raft, "tokens": tokens, "head": lambda _: Golden("", 0, 0),
}  # fmt: skip
SECTIONS: dict[str, dict[str, Any]] = {
    "dsee": {"rank": 3, "nonzeros": 5},
    "lora": {"rank": 3},
    "adapter": {"bottleneck": 4},
    "sparse-adapter": {"bottleneck": 4},
    "compacter": {"bottleneck": 4, "n": 2},
    "tokens": {"tokens": (3, 5, 7)},
    "prompt": {"length": 3},
    "prefix": {"length": 3},
    "lst": {"reduction": 2},
    "attempt": {"count": 2, "length": 3, "width": 4, "train_norm": True},
}
CELLS = [pytest.param(c.method, c.family, id=f"{c.method}-{c.family}") for c in cells() if c.supported]


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_exactly_what_was_written_down_trains(name: str, family: str, task: Callable[..., Any]) -> None:
    t = task(family, pooled=name in ("head", "tokens"))
    whole = {n: p.numel() for n, p in t.model.named_parameters()}
    attach(t.model, method_from({"name": name, **SECTIONS.get(name, {})}), train=t.heads)
    heads = tuple(f"{head}." for head in t.heads)
    trained = {n: p.numel() for n, p in t.model.named_parameters() if p.requires_grad}
    own = {n: size for n, size in trained.items() if not n.startswith(heads)}
    assert trained.keys() - own.keys() == {n for n in whole if n.startswith(heads)}
    if name == "full":
        assert trained == whole
        return
    golden = GOLDEN[name](family)
    assert [n for n in own if not re.fullmatch(golden.names, n)] == []
    assert (len(own), sum(own.values())) == golden[1:]


def test_every_method_is_written_down() -> None:
    assert GOLDEN.keys() | {"full"} == {c.method for c in cells()}
