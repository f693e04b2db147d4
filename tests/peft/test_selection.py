"""Methods that train chosen parameters of the model itself: exactly those, example by example."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpft.engine.preflight import preflight
from dpft.errors import InputError
from dpft.models.classifier import TextClassifier
from dpft.peft import Adapter, BitFit, Full, HeadOnly, LastLayers, Method, Norms, TokenRows, attach, merge
from dpft.peft.families import FAMILIES
from dpft.peft.inject import linears
from dpft.peft.method import Wrapper
from dpft.peft.registry import METHODS, cells, method_from, section_of
from dpft.per_sample import Rows

TOKENS = (5, 3, 11)
IDS = [[5, 3, 5, 7, 22, 5], [11, 9, 9, 11, 0, 0], [5, 0, 0, 0, 0, 0], [8, 6, 3, 0, 0, 0]]

# Family and method -> what the names of the trained parameters match, the head's aside.
TRAINED: list[tuple[str, Method, str]] = [
    ("bert", BitFit(), r"\.bias$"),
    ("gpt2", BitFit(), r"\.bias$"),
    ("bert", Norms(), r"LayerNorm\."),
    ("gpt2", Norms(), r"\.ln_(1|2|f)\."),
    ("llama", Norms(), r"norm\.weight$"),
    *((family, HeadOnly(), r"^$") for family in ("bert", "gpt2", "llama")),
    ("bert", LastLayers(), r"encoder\.layer\.1\."),
    ("bert", LastLayers(k=2), r"encoder\.layer\."),
    ("gpt2", LastLayers(), r"encoder\.h\.1\."),
    ("llama", LastLayers(), r"encoder\.layers\.1\."),
    ("bert", Full(("query", "dense")), r"layer\.\d\..*(query|dense)\."),
    ("bert", Full(("all-linear",)), r"layer\.\d\..*(query|key|value|dense)\."),
    ("gpt2", Full(("all-linear",), biases=False), r"(c_attn|c_proj|c_fc)\.weight$"),
    ("llama", Full(("all-linear",)), r"_proj\.weight$"),
    *((family, TokenRows(TOKENS), r"\.rows\.weight$") for family in ("bert", "gpt2", "llama")),
]
IDENTIFIERS = [f"{family}-{method}".replace(" ", "") for family, method, _ in TRAINED]


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.tensor(IDS)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 2, 1, 0])}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["input_ids"], batch["attention_mask"])
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def classifier(encoder: nn.Module) -> TextClassifier:
    model = TextClassifier(encoder, 3, "mean", None).eval()
    nn.init.normal_(model.head.weight)
    return model


def names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def moved(model: nn.Module) -> nn.Module:
    """``model`` with its trainable parameters away from where they started."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize(("family", "method", "pattern"), TRAINED, ids=IDENTIFIERS)
def test_what_trains_and_how(
    family: str,
    method: Method,
    pattern: str,
    batch: dict[str, Tensor],
    tiny_encoder: Callable[..., Any],
    agree: Callable[..., Any],
) -> None:
    """A5, A6, A11: the exact set, the same outputs to the bit, and the gradients of one example at a time."""
    model = classifier(tiny_encoder(family))
    before = model(batch["input_ids"], batch["attention_mask"])
    attach(model, method, train=("head",))
    assert torch.equal(model(batch["input_ids"], batch["attention_mask"]), before)
    assert method.identity

    expected = {name for name, _ in model.encoder.named_parameters(prefix="encoder") if re.search(pattern, name)}
    assert names(model) == expected | {"head.weight", "head.bias"}
    assert bool(expected) == (not isinstance(method, HeadOnly))

    agree(moved(model), loss, batch)
    preflight(model, loss, batch)


@pytest.mark.parametrize(("family", "method", "pattern"), TRAINED, ids=IDENTIFIERS)
def test_merged_is_the_model_of_before_with_other_values(
    family: str, method: Method, pattern: str, batch: dict[str, Tensor], tiny_encoder: Callable[..., Any], close: Any
) -> None:
    model = classifier(tiny_encoder(family))
    keys = list(model.state_dict())
    moved(attach(model, method, train=("head",)))
    trained = model(batch["input_ids"], batch["attention_mask"])
    assert method.merges
    assert merge(model) is model
    assert list(model.state_dict()) == keys
    assert not any(isinstance(m, Wrapper) for m in model.modules())
    close(model(batch["input_ids"], batch["attention_mask"]), trained)


@pytest.mark.parametrize("method", [m for _, m, _ in TRAINED], ids=IDENTIFIERS)
def test_recipe_section_makes_the_same_method(method: Method) -> None:
    assert method_from(section_of(method)) == method


def test_an_unused_pooler_does_not_train(tiny_encoder: Callable[..., Any]) -> None:
    """It would receive noise and no signal."""
    encoder = tiny_encoder("bert")
    assert encoder.pooler is not None
    assert not any("pooler" in name for name in names(attach(classifier(encoder), Full())))


def test_full_trains_each_parameter_of_a_tied_model_once() -> None:
    model = language_model()
    found = Full().inject(model, torch.Generator())
    assert len({id(p) for p in found}) == len(found) == len(list(model.parameters()))


def test_full_without_biases_trains_everything_else(tiny_encoder: Callable[..., Any]) -> None:
    model = attach(tiny_encoder("bert"), Full(biases=False))
    assert names(model) == {name for name, _ in model.named_parameters() if not name.endswith(".bias")}


def test_last_layers_are_the_decoders() -> None:
    model = attach(encoder_decoder(), LastLayers())
    assert names(model)
    assert all(name.startswith("decoder.block.1.") for name in names(model))


def test_biases_of_a_task_head_train_only_where_it_is_named() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=23, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = attach(BertForSequenceClassification(config), BitFit())
    assert "bert.pooler.dense.bias" in names(model)
    assert "classifier.bias" not in names(model)


def test_token_rows_gradient_is_in_row_form(batch: dict[str, Tensor], tiny_encoder: Callable[..., Any]) -> None:
    """Many chosen rows, few tokens: no table per example is built."""
    from dpft.per_sample import capture

    model = attach(tiny_encoder("bert"), TokenRows(tuple(range(1, 20))))
    with capture(model) as grads:
        model(batch["input_ids"]).last_hidden_state.sum().backward()
    (form,) = grads.values()
    assert isinstance(form, Rows)


def test_token_rows_of_encoder_and_decoder_are_one_table(agree: Callable[..., Any]) -> None:
    """A4: both uses are summed before a norm is taken; merging reaches both."""
    model = attach(encoder_decoder(), TokenRows(TOKENS))
    assert len(names(model)) == 1

    def out(model: nn.Module, ids: Tensor) -> Tensor:
        hidden: Tensor = model(input_ids=ids, decoder_input_ids=ids.flip(1)).last_hidden_state
        return hidden

    ids = torch.tensor(IDS)
    agree(moved(model), lambda model, ids: out(model, ids).sin().flatten(1).sum(1), ids)
    trained = out(model, ids)
    torch.testing.assert_close(out(merge(model), ids), trained)


def test_rows_that_were_not_chosen_stay(tiny_encoder: Callable[..., Any]) -> None:
    model = tiny_encoder("gpt2")
    before = model.wte.weight.detach().clone()
    merge(moved(attach(model, TokenRows(TOKENS))))
    changed = (model.wte.weight != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(TOKENS)


def language_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=23, n_positions=16, n_embd=8, n_layer=1, n_head=2))


def encoder_decoder() -> Any:
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=23, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, pad_token_id=0)
    return T5Model(config).double().eval()


REFUSED: dict[str, tuple[str, Method, str]] = {
    "biases of a model without": ("llama", BitFit(), "this llama model has none; use lora, ia3 or norms"),
    "more blocks than there are": ("bert", LastLayers(k=3), "method.k=3 to be at most 2"),
    "part of a layer": ("gpt2", Full(("c_attn:q",)), "leave out the part"),
    "no such layer": ("bert", Full(("qery",)), "it has query"),
    "no token": ("bert", TokenRows(), "at least one token id"),
    "token beyond the vocabulary": ("bert", TokenRows((23,)), "from 0 to 22, found 23"),
    "negative token": ("bert", TokenRows((-1,)), "found -1"),
    "token of another type": ("bert", TokenRows((True,)), "found True"),
    "token twice": ("bert", TokenRows((3, 4, 3)), "each token id once"),
    "padding token": ("bert", TokenRows((0,)), "the padding token"),
    "no token table": ("vit", TokenRows((3,)), "plain embedding table"),
}


@pytest.mark.parametrize(("family", "method", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_no_place_is_refused_and_changes_nothing(
    family: str, method: Method, words: str, tiny_encoder: Callable[..., Any]
) -> None:
    """F4, A11."""
    model = tiny_encoder(family)
    with pytest.raises(InputError, match=words):
        attach(model, method)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, Wrapper) for m in model.modules())


@pytest.mark.parametrize("k", [0, -1, True, 1.0])
def test_k_is_a_whole_number(k: Any) -> None:
    with pytest.raises(InputError, match=r"method\.k="):
        LastLayers(k=k)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_of_the_blocks(family: str, tiny_encoder: Callable[..., nn.Module]) -> None:
    """T5's cross-attention has four as well."""
    model = tiny_encoder(family)
    blocks = re.compile(r"(layer|layers|h|block)\.\d+\.")
    every = {n for n, m in model.named_modules() if blocks.search(n) and type(m).__name__ in ("Linear", "Conv1D")}
    found = linears(model, ("all-linear",))
    assert [n for n, _ in found] == [n for n, _ in model.named_modules() if n in every]
    if family == "t5":
        assert sum("EncDecAttention" in n for n in every) == 2 * 4
    wrapped = attach(model, Adapter(4))  # whose own layers are none of the model's, nor is what it stands around
    again = {n for n, _ in linears(wrapped, ("all-linear",))}
    assert again <= every
    assert not any("adapter" in n for n in again)


@pytest.mark.parametrize("method", [LastLayers(), Norms(), BitFit(), TokenRows((1,)), Full(("all-linear",))])
def test_a_model_without_a_place_is_refused(method: Method) -> None:
    with pytest.raises(InputError, match="method"):
        attach(nn.Sequential(nn.Linear(2, 2, bias=False)), method)


def test_a_tied_output_layer_is_named() -> None:
    """It would go on reading the frozen rows."""
    with pytest.raises(InputError, match="lm_head of this model is tied"):
        attach(language_model(), TokenRows((3,)))


def test_head_alone_needs_a_head(tiny_encoder: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="'head' trains nothing"):
        attach(tiny_encoder("bert"), HeadOnly())


def test_every_family_has_a_row_in_the_matrix() -> None:
    assert {(c.method, c.family) for c in cells()} == {(m, f) for m in METHODS for f in FAMILIES}
