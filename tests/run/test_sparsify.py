"""``dpft sparsify``: pruned on declared text alone, by the schedule, in the blocks and nowhere else."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import dpft
from dpft.errors import InputError, PrivacyError
from dpft.models.distil import hidden_states_loss
from dpft.models.source import load_encoder, load_tokenizer, resolve
from dpft.peft.inject import linears
from dpft.peft.pattern import SparseLinear
from dpft.sparsify import Pruning, mask_of, prune_gradually, sparsify

ALL = ("all-linear",)
SHORT = {"sparsity": 0.7, "steps": 12, "batch": 4, "length": 8, "lr": 1e-2}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "public.txt"
    path.write_text("the film was good and the plot was dull but fine\n" * 40)
    return path


def test_shares_are_those_of_the_formula() -> None:
    """0.85 (1 - (1 - t/t1)^3) at a quarter, a half and all of t1, by hand; fixed from there."""
    pruning = Pruning(0.85, steps=100, until=40, every=10)
    expected = {0: 0.0, 10: 0.85 * (1 - 27 / 64), 20: 0.85 * 7 / 8, 40: 0.85, 41: 0.85, 100: 0.85}
    assert {t: pytest.approx(pruning.share(t)) for t in expected} == expected
    assert (Pruning(steps=1000).last, Pruning(steps=1000).pace) == (500, 10)


def test_the_rate_falls_and_starts_anew_when_pruning_ends() -> None:
    pruning = Pruning(steps=10, until=4, lr=1.0)
    rates = [pruning.rate(step) for step in range(10)]
    assert rates == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_the_threshold_is_strict_so_ties_go_too() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0], [2.0, 0.0, -3.0]])
    assert torch.equal(mask_of(weight, 2 / 6), torch.tensor([[False, False, False], [True, False, True]]))
    assert torch.equal(mask_of(weight, 1 / 6), weight != 0)
    assert mask_of(weight, 0.0).all()
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 30, generator=g)
    kept = mask_of(weight, 0.85)
    assert int((~kept).sum()) == 510
    assert weight[~kept].abs().max() < weight[kept].abs().min()


def batches(source: Path, text: Path, count: int) -> list[dict[str, torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(source)
    lines = [*text.read_text().splitlines()[:3], "good", "a very bad plot"]
    made = tokenizer(lines, padding=True, truncation=True, max_length=12, return_tensors="pt")
    return [{"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}] * count


def test_shares_follow_the_schedule_and_zeros_never_come_back(bert: Path, text: Path) -> None:
    """AdamW moves every entry at every step, and its momentum outlives the pruning."""
    student, teacher = (AutoModel.from_pretrained(bert).eval() for _ in range(2))
    weights = [m.weight for _, m in linears(student, ALL)]
    pruning = Pruning(0.6, steps=20, until=10, every=5, lr=1e-2, decay=0.1)
    seen: list[list[torch.Tensor]] = []

    def look(step: int, share: float, loss: float) -> None:
        seen.append([w.detach() == 0 for w in weights])
        if step % 5 == 0:
            for zero in seen[-1]:
                assert float(zero.double().mean()) == pytest.approx(share, abs=1 / zero.numel())

    prune_gradually(student, teacher, batches(bert, text, 20), hidden_states_loss, pruning, public=True, say=look)
    assert len(seen) == 20
    for before, after in pairwise(seen):
        assert all((b <= a).all() for b, a in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[9], seen[-1], strict=True))


def test_training_repairs_what_pruning_breaks(bert: Path, text: Path) -> None:
    """The same pruning with a rate of nothing ends further from the dense model."""
    found = {}
    for lr in (1e-9, 5e-3):
        student, teacher = (AutoModel.from_pretrained(bert).eval() for _ in range(2))
        data = batches(bert, text, 40)
        prune_gradually(student, teacher, data, hidden_states_loss, Pruning(0.7, 40, lr=lr), public=True)
        with torch.no_grad():
            found[lr] = float(hidden_states_loss(student, teacher, data[0]))
    assert found[5e-3] < 0.5 * found[1e-9]


def test_a_folder_that_recipes_can_name(bert: Path, text: Path, tmp_path: Path) -> None:
    """Zeros in the blocks' Linear weights, each as sparsity.json says, embeddings untouched; ``full`` locks them."""
    made = sparsify(str(bert), tmp_path / "sparse", text, Pruning(**SHORT), public=True)
    facts = json.loads((tmp_path / "sparse" / "sparsity.json").read_text())
    assert facts == json.loads(json.dumps(made))
    assert facts["objective"] == "hidden-states, distilled"
    assert str(tmp_path) not in json.dumps(facts)
    source = resolve(str(tmp_path / "sparse"))
    encoder, dense = load_encoder(source), AutoModel.from_pretrained(bert)
    tokens = [t("the film")["input_ids"] for t in (load_tokenizer(source), AutoTokenizer.from_pretrained(bert))]
    assert tokens[0] == tokens[1]
    found = {f"{name}.weight": m.weight for name, m in linears(encoder, ALL)}
    assert facts["layers"].keys() == found.keys()
    for name, weight in found.items():
        assert int((weight == 0).sum()) == round(0.7 * weight.numel())
        assert facts["layers"][name] == pytest.approx(float((weight == 0).double().mean()), abs=1e-6)
    assert facts["sparsity"] == pytest.approx(0.7, abs=0.01)
    moved = {n for n, p in encoder.named_parameters() if not torch.equal(p, dense.get_parameter(n))}
    assert found.keys() <= moved
    assert all(name.startswith("encoder.layer.") for name in moved)
    dpft.attach(encoder, dpft.Full(targets=ALL))
    assert sum(isinstance(m, SparseLinear) for m in encoder.modules()) == len(found)


def saved(kind: str, bert: Path, folder: Path) -> Path:
    """A language model with the tiny BERT's vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(0)
    if kind == "masked-lm":
        config: Any = BertConfig.from_pretrained(bert)
        model: Any = BertForMaskedLM(config)
    else:
        ends = {"bos_token_id": 2, "eos_token_id": 3}
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=1, n_head=2, **ends)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("distil", [True, False])
@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_language_models_keep_their_head(kind: str, distil: bool, bert: Path, text: Path, tmp_path: Path) -> None:
    base = saved(kind, bert, tmp_path / "base")
    made = sparsify(str(base), tmp_path / "sparse", text, Pruning(**SHORT), public=True, distil=distil)
    assert made["objective"] == kind + (", distilled" if distil else "")
    head = BertForMaskedLM if kind == "masked-lm" else GPT2LMHeadModel
    model, dense = (head.from_pretrained(folder) for folder in (tmp_path / "sparse", base))
    blocks = ("bert.encoder.layer.", "transformer.h.")
    for name, p in model.named_parameters():
        assert name.startswith(blocks) or torch.equal(p, dense.get_parameter(name)), name
    for _, layer in linears(model, ALL):
        assert float((layer.weight == 0).double().mean()) == pytest.approx(0.7, abs=0.01)


def test_undeclared_text_is_not_even_opened(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="--public"):
        sparsify(str(bert), tmp_path / "sparse", tmp_path / "absent.txt", Pruning(), public=False)
    with pytest.raises(PrivacyError, match="public=True"):
        prune_gradually(nn.Linear(1, 1), nn.Linear(1, 1), iter(()), hidden_states_loss, Pruning(), public=False)


def test_mistakes_are_one_sentence(bert: Path, text: Path, tmp_path: Path) -> None:
    to = tmp_path / "sparse"
    short = tmp_path / "short.txt"
    short.write_text("the film")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    for path, where, options, names in (
        (tmp_path / "absent", to, {}, "--text"),
        (short, to, {}, "longer --text"),
        (text, tmp_path / "used", {}, "--to"),
        (text, to, {"distil": False}, "--no-distil"),
    ):
        with pytest.raises(InputError, match=names):
            sparsify(str(bert), where, path, Pruning(**SHORT), public=True, **options)
        assert not to.exists()
    with pytest.raises(InputError, match=r"--length 99 to be at most \d+, the model's positions"):
        sparsify(str(bert), to, text, Pruning(**{**SHORT, "length": 99}), public=True)
    for bad in ({"sparsity": 1.0}, {"sparsity": 0.0}, {"steps": 1}, {"until": 2000}, {"length": 4}, {"lr": 0.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Pruning(**bad)


def test_the_command_line(place: Any, text: Path) -> None:
    """Exit code 3 without the declaration; with it, what is made says that it is not private."""
    options = ("sparsify", "./bert", "--to", "sparse", "--text", str(text), "--steps", "4", "--batch", "2")
    answer = place.dpft(*options)
    assert answer.code == 3
    assert "--public" in answer.err
    assert not (place.folder / "sparse").exists()
    answer = place.dpft(*options, "--length", "8", "--sparsity", "0.5", "--public")
    assert answer.code == 0, answer.err
    assert "NOT PRIVATE" in answer.out
    assert "50.0% of the blocks' Linear weights are zero" in answer.out
    assert (place.folder / "sparse" / "sparsity.json").is_file()


def test_a_text_that_was_declared_public_can_not_be_private(place: Any) -> None:
    """Of the model itself or of the one that it was made of; a run on other records trains."""
    options = ("--steps", "4", "--batch", "2", "--length", "8", "--sparsity", "0.5", "--public")
    assert place.dpft("sparsify", "./bert", "--to", "once", "--text", "records.csv", *options).code == 0
    (place.folder / "other.txt").write_text("the film was good and the plot was dull but fine\n" * 40)
    assert place.dpft("sparsify", "./once", "--to", "twice", "--text", "other.txt", *options).code == 0
    assert len(json.loads((place.folder / "twice" / "sparsity.json").read_text())["declared_public"]) == 2
    for folder in ("once", "twice"):
        answer = place.dpft("run", "tiny.toml", "--set", f"model.source=./{folder}")
        assert answer.code == 3
        assert f"The sparse model folder:{folder} (model.source) was made without privacy from text:records.csv" in (
            answer.err
        )
        assert not place.run.exists()
    place.records(40, changed="x")
    answer = place.dpft("run", "tiny.toml", "--set", "model.source=./twice", "--set", "privacy.steps=1")
    assert answer.code == 0, answer.err
    path = place.folder / "once" / "sparsity.json"
    path.write_text('{"declared_public": 3}')
    answer = place.dpft("run", "tiny.toml", "--set", "model.source=./once")
    assert (answer.code, "sparsity.json in once is damaged" in answer.err) == (2, True)


def test_from_a_sparse_model_to_a_private_one_with_the_same_zeros(place: Any, text: Path) -> None:
    """Sparsify, train privately, export: locked zeros are there without asking, others by --keep-pattern alone."""
    options = ("--steps", "4", "--batch", "2", "--length", "8", "--sparsity", "0.5", "--public")
    assert place.dpft("sparsify", "./bert", "--to", "sparse", "--text", str(text), *options).code == 0
    zeros = {name: m.weight == 0 for name, m in linears(AutoModel.from_pretrained(place.folder / "sparse"), ALL)}
    full = ("method.name=full", 'method.targets=["all-linear"]', "method.rank=")
    for out, fields in (("lora", ()), ("locked", ('method.pattern="lock"',)), ("full", full)):
        sets = [part for f in ("model.source=./sparse", "privacy.steps=2", *fields) for part in ("--set", f)]
        answer = place.dpft("run", "tiny.toml", "--out", out, *sets)
        assert answer.code == 0, answer.err
        base = ("--merge", "--base", "sparse")
        answer = place.dpft("export", out, "--to", f"{out}-merged", *base)
        if out == "lora":
            assert answer.code == 2
            assert "--keep-pattern" in answer.err
            answer = place.dpft("export", out, "--to", f"{out}-merged", *base, "--keep-pattern")
        assert answer.code == 0, answer.err
        merged = dict(linears(AutoModel.from_pretrained(place.folder / f"{out}-merged"), ALL))
        dense = dict(linears(AutoModel.from_pretrained(place.folder / "sparse"), ALL))
        assert all(torch.equal(merged[name].weight == 0, mask) for name, mask in zeros.items())
        moved = [name for name in zeros if not torch.equal(merged[name].weight, dense[name].weight)]
        assert len(moved) == (len(zeros) if out == "full" else 2)
