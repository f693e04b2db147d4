"""Bottleneck adapters and Compacter in models: where they go, how they start, and each example's own gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpft.engine.preflight import preflight
from dpft.errors import InputError
from dpft.models.classifier import TextClassifier
from dpft.peft import Adapter, Compacter, Method, attach, merge
from dpft.peft.bottleneck import Adapted, Bottleneck
from dpft.per_sample import capture

METHODS: dict[str, Bottleneck] = {
    "adapter": Adapter(bottleneck=3, norms=True),
    "adapter, bare": Adapter(reduction=8, bias=False, before_dropout=True, init="xavier", activation="silu"),
    "compacter": Compacter(norms=True),
    "compacter, own rules": Compacter(bottleneck=4, n=2, shared_rule=False, bias=False, init="yu"),
}
METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())

# After attention and after the feed-forward layers, and where before_dropout puts the first.
PLACES = {
    "bert": ("encoder.layer.{}.attention.output.dropout", "encoder.layer.{}.output.dropout", "attention.output.dense"),
    "gpt2": ("h.{}.attn.resid_dropout", "h.{}.mlp.dropout", "attn.c_proj"),
    "llama": ("layers.{}.self_attn.o_proj", "layers.{}.mlp.down_proj", "self_attn.o_proj"),
}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.tensor([[5, 3, 5, 7, 22, 5], [11, 9, 9, 11, 0, 0], [5, 0, 0, 0, 0, 0], [8, 6, 3, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 2, 1, 0])}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["input_ids"], batch["attention_mask"])
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def classifier(encoder: nn.Module) -> TextClassifier:
    model = TextClassifier(encoder, 3, "mean", None).eval()
    nn.init.normal_(model.head.weight)
    return model


def moved(model: nn.Module) -> nn.Module:
    """Away from the start, where a zero up-projection leaves the layers before it without a gradient."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    return model


def adapted(model: nn.Module) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, Adapted)}


@METHOD
@pytest.mark.parametrize("family", PLACES)
def test_in_a_model(
    family: str,
    method: Bottleneck,
    batch: dict[str, Tensor],
    tiny_encoder: Callable[..., Any],
    agree: Callable[..., Any],
) -> None:
    """A5, A6, A7, A11: places, start, trained set, the gradients of one example at a time, neighbours."""
    model = classifier(tiny_encoder(family))
    before = model(batch["input_ids"], batch["attention_mask"])
    norms = {n for n, _ in model.named_parameters() if "norm" in n.lower() or ".ln_" in n} if method.norms else set()
    attach(model, method, train=("head",))
    after = model(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(after, before) == method.identity

    attention, ffn, proj = PLACES[family]
    if method.before_dropout:
        attention = attention.partition("{}.")[0] + "{}." + proj
    places = {f"encoder.{place.format(i)}" for place in (attention, ffn) for i in range(2)}
    assert adapted(model) == places
    parts = {
        f"{place}.adapter_{x}.{name}"
        for place in places
        for x in ("down", "up")
        for name, _ in model.get_submodule(f"{place}.adapter_{x}").named_parameters()
    }
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert trained == parts | norms | {"head.weight", "head.bias"}

    agree(moved(model), loss, batch)
    preflight(model, loss, batch)


def translation_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
    losses = nn.functional.cross_entropy(out.logits.transpose(1, 2), ids, reduction="none")
    return (losses * mask).sum(dim=1) / mask.sum(dim=1)


@METHOD
def test_in_an_encoder_and_decoder(method: Bottleneck, batch: dict[str, Tensor], agree: Callable[..., Any]) -> None:
    """A4, A5, A6: a rule that encoder and decoder share is one parameter."""
    from transformers import AutoModelForSeq2SeqLM, T5Config

    torch.manual_seed(0)
    config = T5Config(vocab_size=23, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0)
    model = AutoModelForSeq2SeqLM.from_config(config).double().eval()
    del batch["labels"]
    with torch.no_grad():  # torch takes other kernels where weights train
        before = translation_loss(model, batch)
        attach(model, method)
        assert torch.equal(translation_loss(model, batch), before) == method.identity
    assert len(adapted(model)) == 8
    assert not any("EncDecAttention" in name for name in adapted(model))
    agree(moved(model), translation_loss, batch)
    preflight(model, translation_loss, batch)


@METHOD
@pytest.mark.parametrize("shape", [(4, 16), (4, 3, 16), (1, 3, 16), (0, 3, 16), (0, 16)], ids=str)
def test_one_layer_on_any_batch(shape: tuple[int, ...], method: Bottleneck, agree: Callable[..., Any]) -> None:
    """D2: with and without tokens; one example and none."""
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.LayerNorm(16)).double()
    stack = moved(attach(stack, replace(method, targets=("0", "2"))))
    agree(stack, lambda m, x: m(x).sin().flatten(1).sum(dim=1), torch.randn(shape, dtype=torch.float64))


@METHOD
def test_other_examples_do_not_matter(
    method: Bottleneck, batch: dict[str, Tensor], tiny_encoder: Callable[..., Any], close: Callable[..., None]
) -> None:
    """A7: also with a rule that all layers share, and with dropout on."""
    model = moved(attach(classifier(tiny_encoder("bert")), method, train=("head",)))
    found = []
    for last in (3, 0):
        part = {key: torch.cat([t[:3], t[last : last + 1]]) for key, t in batch.items()}
        torch.manual_seed(1)
        with capture(model.train()) as grads:
            loss(model, part).sum().backward()
        found.append({name: form.dense()[:3] for name, form in grads.items()})
    for name, g in found[0].items():
        close(found[1][name], g)


@METHOD
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_near_the_whole(dtype: torch.dtype, method: Bottleneck, tiny_encoder: Any) -> None:
    """Under autocast, and in a model that is kept in bfloat16."""
    ids = torch.tensor([[5, 3, 5, 7], [11, 9, 9, 11], [5, 3, 8, 9]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 2, 1])}
    torch.manual_seed(0)
    model = moved(attach(classifier(tiny_encoder("bert")), method, train=("head",)))

    def gradients() -> Tensor:
        with capture(model) as grads:
            loss(model, batch).sum().backward()
        return torch.cat([form.dense().double().flatten(1) for form in grads.values()], dim=1)

    truth = gradients()
    model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        found = gradients()
    assert (found - truth).norm() <= 0.1 * truth.norm()


@METHOD
def test_seed_alone_fixes_the_start(method: Bottleneck, tiny_encoder: Callable[..., Any]) -> None:
    def values(seed: int) -> Tensor:
        model, state = tiny_encoder("bert"), torch.get_rng_state()
        attach(model, method, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(values(3), values(3))
    assert not torch.equal(values(3), values(4))


def test_starts_of_an_adapter() -> None:
    """A wide layer, so that its moments are near those of the distribution."""

    def started(**fields: Any) -> Adapted:
        layer = attach(nn.Sequential(nn.Linear(400, 400)), Adapter(100, targets=("0",), **fields))[0]
        assert not layer.adapter_down.bias.any()
        assert not layer.adapter_up.bias.any()
        return layer

    xavier = (2 / 500) ** 0.5
    for init, (down, up) in {"zero": (xavier, 0), "xavier": (xavier, xavier), "normal": (0.88e-3, 0.88e-3)}.items():
        layer = started(init=init)
        assert float(layer.adapter_down.weight.detach().std()) == pytest.approx(down, rel=0.03)
        assert float(layer.adapter_up.weight.detach().std()) == pytest.approx(up, rel=0.03)
        assert Adapter(init=init).identity == (init == "zero")  # type: ignore[arg-type]
    assert float(layer.adapter_up.weight.detach().abs().max()) <= 2e-3
    assert float(started(init="normal", init_std=0.5).adapter_up.weight.detach().abs().max()) > 0.9


@pytest.mark.parametrize(
    ("placement", "ending"), [("ffn", "layer.0.output.dropout"), ("attention", "attention.output.dropout")]
)
def test_one_sublayer_alone(placement: Any, ending: str, tiny_encoder: Callable[..., Any]) -> None:
    found = adapted(attach(tiny_encoder("bert"), Adapter(placement=placement)))
    assert len(found) == 2
    assert any(name.endswith(ending) for name in found)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_what_an_adapter_computes(activation: Any) -> None:
    from transformers.activations import ACT2FN

    torch.manual_seed(0)
    method = Adapter(3, activation=activation, targets=("0",))
    layer = moved(attach(nn.Sequential(nn.Linear(5, 4)).double(), method))[0]  # type: ignore[index]
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    h, down, up = layer.base_layer(x), layer.adapter_down, layer.adapter_up
    expected = h + ACT2FN[activation](h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


class Attention(nn.Module):
    """Gives back two things, as HF's do."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.config = nn.Linear(4, 4), type("Config", (), {"d_model": 4})()
        self.inner = nn.ModuleDict({"drop": nn.Dropout()})

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.inner["drop"](self.proj(x)), "weights"


@pytest.mark.parametrize("targets", [("proj",), ("inner.drop",), ("a",), ("proj", "a", "drop")], ids=str)
def test_named_modules_of_an_unknown_family(targets: tuple[str, ...], agree: Callable[..., Any]) -> None:
    """A target inside another is adapted too; of several outputs the first."""
    model = nn.ModuleDict({"a": Attention()})
    model.config = model["a"].config
    torch.manual_seed(0)
    moved(attach(model.double(), Adapter(2, targets=targets)))
    assert len(adapted(model)) == len(targets)

    def out(model: Any, x: Tensor) -> Tensor:
        h, words = model["a"](x)
        assert words == "weights"
        return h.sin().flatten(1).sum(dim=1)

    agree(model, out, torch.randn(3, 2, 4, dtype=torch.float64))


@METHOD
def test_merging_is_refused_and_changes_nothing(method: Bottleneck, tiny_encoder: Callable[..., Any]) -> None:
    model = attach(tiny_encoder("bert"), method)
    with pytest.raises(InputError, match="no merged form"):
        merge(model)
    assert not method.merges
    assert len(adapted(model)) == 4


def refuse(method: Callable[[], Method], model: nn.Module | None = None) -> Callable[[], object]:
    return lambda: attach(model or nn.ModuleDict({"q": nn.Linear(6, 6), "drop": nn.Dropout()}), method())


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "both sizes": (lambda: Adapter(bottleneck=4, reduction=4), "method.bottleneck and method.reduction both"),
    "bottleneck 0": (lambda: Adapter(bottleneck=0), "method.bottleneck=0"),
    "bottleneck true": (lambda: Compacter(bottleneck=True), "method.bottleneck=True"),
    "reduction 1.5": (lambda: Adapter(reduction=1.5), "method.reduction=1.5"),  # type: ignore[arg-type]
    "n 0": (lambda: Compacter(n=0), "method.n=0"),
    "unknown activation": (lambda: Adapter(activation="gel"), "method.activation='gel'"),  # type: ignore[arg-type]
    "unknown placement": (lambda: Adapter(placement="all"), "method.placement='all'"),  # type: ignore[arg-type]
    "unknown start": (lambda: Adapter(init="yu"), "method.init='yu'"),  # type: ignore[arg-type]
    "unknown start of factors": (lambda: Compacter(init="zero"), "method.init='zero'"),  # type: ignore[arg-type]
    "no spread": (lambda: Adapter(init="normal", init_std=0.0), "method.init_std=0.0"),
    "no family": (refuse(Adapter), "method.targets for the model family 'unknown'"),
    "no such target": (refuse(lambda: Adapter(targets=("k",))), "names 'k', which this model has not"),
    "no width": (refuse(lambda: Adapter(targets=("drop",))), "method.targets names drop, a Dropout whose"),
    "reduced to nothing": (refuse(lambda: Adapter(reduction=7, targets=("q",))), "method.reduction=7 to be at most 6"),
    "n no divisor of the width": (refuse(lambda: Compacter(4, targets=("q",))), "n=4 to divide 6, .* divisor of 2"),
    "n no divisor inside": (refuse(lambda: Compacter(3, n=2, targets=("q",))), "and 3, the width inside; .* of 3"),
    "no norms": (refuse(lambda: Adapter(targets=("q",), norms=True)), "method.norms is true"),
    "no forward pass": (
        refuse(lambda: Adapter(targets=("l",)), nn.ModuleDict({"l": nn.ModuleList()})), "a module with a forward pass",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_refused_by_name(act: Callable[[], object], words: str) -> None:
    """F4."""
    with pytest.raises(InputError, match=words):
        act()


def test_a_refused_model_is_unchanged(tiny_encoder: Callable[..., Any]) -> None:
    """A11: the last place has no room, and the first is not wrapped."""
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 6)})
    with pytest.raises(InputError, match="width of b"):
        attach(model, Compacter(targets=("a", "b")))
    assert not adapted(model)
    assert all(p.requires_grad for p in model.parameters())
