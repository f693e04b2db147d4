"""F3, I1, I4: what leaves is the declared tensors, it loads elsewhere with equal results, and nothing hostile loads."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel

import dpft
from dpft.adapter import save_adapter, save_model
from dpft.errors import InputError
from dpft.models.classifier import Pooling, TextClassifier
from dpft.models.source import load_encoder, resolve
from dpft.peft.method import Method
from dpft.peft.registry import METHODS as REGISTRY

# peft asks transformers for a name that transformers has renamed; neither is ours. (peft's warning of missing
# adapter keys stays an error.)
PEFT_IS_OLDER = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LABELS = ("negative", "neutral", "positive")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny BERT, in a folder whose path is nobody's business."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=19, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("secret-place") / "tiny-bert"
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    mask = (torch.arange(6) < torch.tensor([6, 3, 1])[:, None]).long()
    return torch.randint(1, 19, (3, 6), generator=g) * mask, mask


def trained(base: Path, method: Method, pooling: Pooling = "mean", norm: float | None = None) -> TextClassifier:
    """A classifier whose every trained value has moved."""
    model = TextClassifier(load_encoder(resolve(str(base))), 3, pooling, norm)
    dpft.attach(model, method, train=("head",))
    scatter(model)
    return model


def scatter(model: nn.Module) -> None:
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g))


def saved(model: TextClassifier, method: Method, folder: Path) -> Path:
    save_model(model, method, folder, base="folder:tiny-bert", revision=None, labels=LABELS)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    method = dpft.LoRA(rank=2, alpha=5)
    return saved(trained(base, method), method, tmp_path / "adapter")


LORAS = [dpft.LoRA(2), dpft.LoRA(3, alpha=7.5), dpft.LoRA(2, alpha=1, targets=("query", "attention.output.dense"))]


# What a method needs beside its defaults.
FIELDS: dict[str, dict[str, Any]] = {
    "tokens": {"tokens": (3, 5)},
    "adapter": {"bottleneck": 4},
    "compacter": {"n": 2},
    "prompt": {"length": 3},
    "attempt": {"count": 2, "length": 3, "width": 4, "temperature": 2.0},
    "dsee": {"rank": 2, "nonzeros": 5},
}
METHODS: list[Method] = [
    *LORAS,
    dpft.LoRA(2, targets=("query", "key", "value"), fuse_qkv=True, freeze_a=True),
    *(cls(**FIELDS.get(name, {})) for name, cls in REGISTRY.items()),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(("pooling", "norm"), [("mean", None), ("cls", 3.0)])
@torch.no_grad()
def test_round_trip_gives_identical_logits(
    method: Method, pooling: Pooling, norm: float | None, base: Path, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    model = trained(base, method, pooling, norm)
    again = dpft.load(saved(model, method, tmp_path / "a"), base=str(base))
    assert torch.equal(again(*batch), model(*batch))
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    assert not any(m.training for m in again.modules())


@PEFT_IS_OLDER
@pytest.mark.parametrize("method", LORAS, ids=str)
@torch.no_grad()
def test_hf_peft_loads_the_encoder_with_equal_results(
    method: dpft.LoRA, base: Path, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """To 1e-6: peft adds the branch in another order, one float32 rounding a layer."""
    model = trained(base, method)
    folder = saved(model, method, tmp_path / "a")
    other = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base).eval(), str(folder)).eval()
    ids, mask = batch
    hidden = other(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    head = load_file(folder / "head.safetensors")
    torch.testing.assert_close(pooled @ head["weight"].T + head["bias"], model(ids, mask), rtol=1e-6, atol=1e-5)


@PEFT_IS_OLDER
@torch.no_grad()
def test_sequence_classifier_loads_in_hf_peft_with_equal_logits(
    base: Path, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """Its own head trains in full, and travels as modules_to_save."""

    def fresh() -> Any:
        torch.manual_seed(5)
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()

    method = dpft.LoRA(2, alpha=6)
    model = dpft.attach(fresh(), method, train=("classifier",))
    scatter(model)
    save_adapter(model, method, tmp_path / "a", base=str(base.name), train=("classifier",))
    other = peft.PeftModel.from_pretrained(fresh(), str(tmp_path / "a")).eval()
    ids, mask = batch
    found, expected = (m(input_ids=ids, attention_mask=mask).logits for m in (other, model))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


def test_only_declared_tensors_leave_and_no_path(base: Path, adapter: Path, tmp_path: Path) -> None:
    """F3, I4: names and sizes are the method's; no file holds where the base model was, nor where this one is."""
    assert {f.name for f in adapter.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "head.safetensors", "dpft.json"
    }  # fmt: skip
    factors = load_file(adapter / "adapter_model.safetensors")
    stems = [f"encoder.layer.{i}.attention.self.{t}" for i in (0, 1) for t in ("query", "value")]
    assert {name: tuple(t.shape) for name, t in factors.items()} == {
        f"base_model.model.{stem}.lora_{x}.weight": shape
        for stem in stems
        for x, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    assert {name: tuple(t.shape) for name, t in load_file(adapter / "head.safetensors").items()} == {
        "weight": (3, 16), "bias": (3,)
    }  # fmt: skip
    for file in adapter.iterdir():
        content = file.read_bytes()
        assert not any(str(path).encode() in content for path in (base.parent, tmp_path, Path.home()))
        assert b"secret-place" not in content


def test_training_leaves_nothing_of_the_batch_in_the_adapter(base: Path, tmp_path: Path) -> None:
    """F3: after per-example gradients were taken, no stored tensor has the batch as a leading size."""
    from dpft.engine.collect import collect

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["input_ids"], batch["attention_mask"])
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    method, B = dpft.LoRA(2), 11
    model = trained(base, method)
    inputs = {"input_ids": torch.ones(B, 5, dtype=torch.long), "attention_mask": torch.ones(B, 5, dtype=torch.long)}
    collect(model, loss, {**inputs, "labels": torch.zeros(B, dtype=torch.long)}, expected=B)
    folder = saved(model, method, tmp_path / "a")
    stored = [t for f in folder.glob("*.safetensors") for t in load_file(f).values()]
    assert stored
    assert not any(t.shape[:1] == (B,) for t in stored)


def test_base_from_a_local_folder_must_be_named_again(adapter: Path) -> None:
    with pytest.raises(InputError, match="tiny-bert"):
        dpft.load(adapter)


def rewrite(name: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return act


def first(tensors: dict[str, Tensor], f: Callable[[Tensor], Tensor]) -> None:
    """Change the first tensor of numbers; masks and positions are whole numbers."""
    name = min(n for n, t in tensors.items() if t.is_floating_point())
    tensors[name] = f(tensors[name]).contiguous()


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        meta = json.loads((folder / "dpft.json").read_text())
        change(meta)
        (folder / "dpft.json").write_text(json.dumps(meta))

    return act


def shorten(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


A, H = "adapter_model.safetensors", "head.safetensors"
HOSTILE: dict[str, Callable[[Path], object]] = {
    "another rank": rewrite(A, lambda t: first(t, lambda x: x[:1])),
    "transposed": rewrite(A, lambda t: first(t, lambda x: x.T)),
    "one axis more": rewrite(H, lambda t: first(t, lambda x: x[None])),
    "a nan": rewrite(A, lambda t: first(t, lambda x: x.masked_fill(x == x.max(), float("nan")))),
    "an infinity in the head": rewrite(H, lambda t: first(t, lambda x: x + float("inf"))),
    "a missing name": rewrite(A, lambda t: t.pop(min(t))),
    "a name too many": rewrite(A, lambda t: t.update(extra=torch.zeros(2))),
    "a frozen weight's name": rewrite(
        A, lambda t: t.update({"base_model.model.embeddings.word_embeddings.weight": torch.zeros(19, 16)})
    ),
    "truncated factors": shorten(A),
    "truncated head": shorten(H),
    "no factors": lambda folder: (folder / A).unlink(),
    "no head": lambda folder: (folder / H).unlink(),
    "a huge header": lambda folder: (folder / A).write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"),
    "factors are a folder": lambda folder: ((folder / A).unlink(), (folder / A).mkdir()),
    "no description": lambda folder: (folder / "dpft.json").unlink(),
    "half a description": shorten("dpft.json"),
    "description without a method": edit(lambda m: m.pop("method")),
    "rank of text": edit(lambda m: m["method"].update(rank="2")),
    "rank beyond reason": edit(lambda m: m["method"].update(rank=-1)),
    "labels of a number": edit(lambda m: m.update(labels=3)),
    "unheard-of pooling": edit(lambda m: m.update(pooling="max")),
    "feature norm of text": edit(lambda m: m.update(feature_norm="1")),
    "targets that are not there": edit(lambda m: m["method"].update(targets=["nowhere"])),
    "alpha of text": edit(lambda m: m["method"].update(alpha="big")),
    "a format from the future": edit(lambda m: m.update(format=99)),
}


@pytest.mark.parametrize("attack", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_or_damaged_folder_is_an_input_error(
    attack: Callable[[Path], object], base: Path, adapter: Path
) -> None:
    """I1: exact names, exact shapes, finite values, or nothing."""
    dpft.load(adapter, base=str(base))
    attack(adapter)
    with pytest.raises(InputError):
        dpft.load(adapter, base=str(base))


SAME_NAMES: dict[str, Callable[[Path], object]] = {
    "copies of a shared factor that differ": rewrite(
        A, lambda t: t.update({n: x + 1 for n, x in t.items() if n.endswith("key.lora_A.weight")})
    ),
}


@pytest.mark.parametrize("attack", SAME_NAMES.values(), ids=SAME_NAMES.keys())
def test_values_that_the_method_can_not_have_are_refused(
    attack: Callable[[Path], object], base: Path, tmp_path: Path
) -> None:
    method = dpft.LoRA(2, targets=("query", "key", "value"), fuse_qkv=True)
    folder = saved(trained(base, method), method, tmp_path / "a")
    dpft.load(folder, base=str(base))
    attack(folder)
    with pytest.raises(InputError, match="can't have"):
        dpft.load(folder, base=str(base))


@pytest.mark.parametrize(
    "name", ["a missing name", "a name too many", "a nan", "another rank", "a frozen weight's name"]
)
@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, dpft.LoRA) and m.name != "head"], ids=str)
def test_every_method_refuses_what_does_not_fit(name: str, method: Method, base: Path, tmp_path: Path) -> None:
    """I1."""
    folder = saved(trained(base, method), method, tmp_path / "a")
    if name == "a frozen weight's name" and method.name == "full":
        pytest.skip("nothing is frozen")
    HOSTILE[name](folder)
    with pytest.raises(InputError):
        dpft.load(folder, base=str(base))


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("alone", [False, True], ids=["beside the real files", "instead of them"])
def test_pickles_are_never_read(alone: bool, base: Path, adapter: Path, tmp_path: Path) -> None:
    """I1: under every name that some library would take."""
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    for name in ("pytorch_model.bin", "adapter_model.bin", "adapter_model.pt", "head.bin", "head.pt", "dpft.pkl"):
        (adapter / name).write_bytes(bomb)
    if alone:
        for name in (A, H):
            (adapter / name).write_bytes(bomb)
        with pytest.raises(InputError):
            dpft.load(adapter, base=str(base))
    else:
        dpft.load(adapter, base=str(base))
    assert not (tmp_path / "boom").exists()
