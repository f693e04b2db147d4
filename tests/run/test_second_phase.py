"""A second private phase: it goes on from what a first one released, pruned, and the books hold both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Budget, Ledger, PoissonGaussian, Sequential, Unit, certify, epsilon

UNIT = Unit("note", "add_remove")
FIRST, SECOND = PoissonGaussian(0.25, 1.0, 8), PoissonGaussian(0.25, 1.5, 5)
DSEE = '[method]\nname = "dsee"\nrank = 2\nalpha = 4.0\nnonzeros = 4\n'
BOOKS = '[ledger]\nfile = "books.jsonl"\ndataset = "notes"\n'
START = '[start]\nrun = "runs/tiny"\nprune = 0.3\n'


def write_recipes(folder: Path) -> None:
    """The first phase and, beside it, the second."""
    text = (folder / "tiny.toml").read_text()
    method = text[text.index("[method]") : text.index("[privacy]")]
    first = text.replace(method, DSEE) + BOOKS
    (folder / "tiny.toml").write_text(first)
    second = first.replace('name = "tiny"', 'name = "second"').replace("steps = 8", "steps = 5")
    (folder / "second.toml").write_text(second.replace("multiplier = 1.0", "multiplier = 1.5") + START)
    with Ledger.open(folder / "books.jsonl", "notes", UNIT, Budget(50.0, 1e-5)):
        pass


@pytest.fixture(scope="module")
def phases(make_place: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Both phases run once; tests that change something copy the folder."""
    place = make_place(tmp_path_factory.mktemp("phases") / "work")
    write_recipes(place.folder)
    for recipe in ("tiny.toml", "second.toml"):
        answer = place.dpft("run", recipe)
        assert answer.code == 0, answer.err
    return place


@pytest.fixture
def copy(phases: Any, tmp_path: Path) -> Any:
    """The first phase done, the second not."""
    shutil.copytree(phases.folder, tmp_path / "work", symlinks=True)
    shutil.rmtree(tmp_path / "work" / "runs" / "second")
    return type(phases)(tmp_path / "work")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_books_hold_both_phases(phases: Any) -> None:
    """Composed: more than either, less than their sum."""
    books = Ledger.read(phases.folder / "books.jsonl")
    assert [(r.mech, r.reserved, r.committed) for r in books.runs().values()] == [(FIRST, 8, 8), (SECOND, 5, 5)]
    alone = [epsilon(m, UNIT, 1e-5).upper for m in (FIRST, SECOND)]
    assert max(alone) < books.spent(1e-5).upper < sum(alone)


def test_the_statement_is_about_both(phases: Any) -> None:
    """Of the second phase; the first one's, and how it is told from it, in words and figures."""
    first, second = (read(phases.folder / "runs" / name / "privacy.json") for name in ("tiny", "second"))
    assert first["started_from"] is None
    both = certify(Sequential([FIRST, SECOND]), UNIT, 1e-5).bound
    assert second["epsilon"] == {"lower": both.lower, "upper": both.upper}
    start = second["started_from"]
    assert start["run"] == first["data_set_run"] != second["data_set_run"]
    assert start["pruned"] == {"prune": 0.3, "scope": "global"}
    assert start["epsilon_of_this_run"]["upper"] == pytest.approx(epsilon(SECOND, UNIT, 1e-5).upper)
    assert first["epsilon"]["upper"] < second["epsilon"]["upper"]
    assert first["attack_risk"]["advantage"] < second["attack_risk"]["advantage"]
    for name in ("report.md", "report.html"):
        text = (phases.folder / "runs" / "second" / name).read_text()
        for part in (start["run"], "those of both together", "own ledger holds the sum of all runs"):
            assert part in text
    assert "second phase" not in (phases.folder / "runs" / "tiny" / "report.md").read_text()


def test_the_report_can_be_made_again(phases: Any) -> None:
    before = (phases.folder / "runs" / "second" / "privacy.json").read_bytes()
    assert phases.dpft("report", "runs/second").code == 0
    assert (phases.folder / "runs" / "second" / "privacy.json").read_bytes() == before


def test_what_is_pruned_stays_away_and_the_rest_trains_on(phases: Any) -> None:
    """The masks are those of the first phase's values; W itself is the base's."""
    import torch

    import dpft
    from dpft.peft.prune import Pruning, masks, sparsity
    from dpft.peft.pruned import Pruned

    base = str(phases.folder / "bert")
    first, second = (dpft.load(phases.folder / "runs" / name / "adapter", base=base) for name in ("tiny", "second"))
    expected = masks(first.encoder, Pruning(0.3))
    held = {n.removesuffix(".base_layer"): m for n, m in second.encoder.named_modules() if isinstance(m, Pruned)}
    assert held.keys() == expected.keys()
    assert sparsity(expected)[0] == round(0.3 * sparsity(expected)[1])
    pretrained = dict(first.encoder.named_parameters())
    for name, layer in held.items():
        assert torch.equal(layer.mask, expected[name])
        original = pretrained.get(f"{name}.weight", pretrained.get(f"{name}.base_layer.weight"))
        assert torch.equal(layer.weight, original)
    values = {n: p for n, p in second.named_parameters() if n.endswith(".values")}
    assert len(values) == 2
    for name, value in values.items():
        assert not torch.equal(value, first.get_parameter(name))
        layer = name.rpartition(".")[0]
        assert torch.equal(first.get_buffer(f"{layer}.rows"), second.get_buffer(f"{layer}.rows"))


def test_what_is_loaded_is_what_was_trained(
    copy: Any, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dpft.load, and the merged export, against the model that the run held in its hands."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel

    import dpft
    import dpft.run as module

    kept: list[Any] = []
    release = module.release
    monkeypatch.setattr(
        module, "release", lambda folder, model, *rest: (kept.append(model), release(folder, model, *rest))
    )
    answer = copy.dpft("run", "second.toml")
    assert answer.code == 0, answer.err
    ids = {"input_ids": torch.tensor([[2, 6, 9, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    run = copy.folder / "runs" / "second"
    with torch.no_grad():
        expected = kept[0].cpu().eval()(**ids)
        assert torch.equal(dpft.load(run / "adapter", base=str(bert))(**ids), expected)
        answer = copy.dpft("export", str(run), "--to", str(tmp_path / "merged"), "--merge", "--base", str(bert))
        assert answer.code == 0, answer.err
        hidden = AutoModel.from_pretrained(tmp_path / "merged").eval()(**ids).last_hidden_state
        head = load_file(tmp_path / "merged" / "head.safetensors")
        found = hidden.mean(1) @ head["weight"].T + head["bias"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "pruned = True" in (tmp_path / "merged" / "README.md").read_text()


def test_it_begins_where_the_first_ended(copy: Any, bert: Path) -> None:
    """Every value that trains, the head's too: seen at a rate at which five steps move next to nothing."""
    import torch

    import dpft

    answer = copy.dpft("run", "second.toml", "--set", "optimizer.lr=1e-6", "--set", "seed=5")
    assert answer.code == 0, answer.err
    first, second = (dpft.load(copy.folder / "runs" / n / "adapter", base=str(bert)) for n in ("tiny", "second"))
    trained = {name: p for name, p in first.named_parameters() if p.requires_grad}
    assert len(trained) == 8
    for name, p in trained.items():
        assert p.abs().max() > 1e-4
        torch.testing.assert_close(second.get_parameter(name), p, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [("start.prune=", "start.heads=1"), ("start.prune=",)], ids=["heads", "nothing"])
def test_other_ways_to_start(options: tuple[str, ...], copy: Any, bert: Path) -> None:
    """Heads dropped instead of weights; or nothing, and then no masks are kept."""
    import dpft
    from dpft.peft.pruned import Pruned

    answer = copy.dpft("run", "second.toml", *(part for o in options for part in ("--set", o)))
    assert answer.code == 0, answer.err
    model = dpft.load(copy.folder / "runs" / "second" / "adapter", base=str(bert))
    held = {n.removesuffix(".base_layer"): m.mask for n, m in model.encoder.named_modules() if isinstance(m, Pruned)}
    assert bool(held) == (len(options) == 2)
    if held:  # one of two heads: half of query, key, value and the projection behind, nothing of the rest
        shares = {name: float(mask.float().mean()) for name, mask in held.items()}
        assert all(share == (0.5 if "attention" in name else 1.0) for name, share in shares.items())


def other_books(folder: Path) -> None:
    (folder / "books.jsonl").unlink()
    with Ledger.open(folder / "books.jsonl", "notes", UNIT, Budget(50.0, 1e-5)):
        pass


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(read(path) | values))


def unconfirmed(folder: Path) -> None:
    """Books in which the first phase was charged and did not finish."""
    name = read(folder / "runs" / "tiny" / "plan.json")["data_set_run"]
    other_books(folder)
    with Ledger.reopen(folder / "books.jsonl") as ledger, ledger.run(name, FIRST) as run:
        run.reserve(8)


TINY = "runs/tiny"
MISTAKES: dict[str, tuple[Any, tuple[str, ...], int, str]] = {
    "books without the first": (other_books, (), 3, "not in the books"),
    "books where it did not finish": (unconfirmed, (), 3, "not in the books"),
    "first without books": (lambda f: change(f / TINY / "plan.json", data_set_run=None), (), 3, "not in the books"),
    "first not private": (lambda f: change(f / TINY / "plan.json", noise_is_private=False), (), 3, "NOT PRIVATE"),
    "no such run": (None, ("start.run=runs/none",), 2, "start.run='runs/none'"),
    "first not finished": (lambda f: (f / TINY / "privacy.json").unlink(), (), 2, "finished run"),
    "weights gone": (lambda f: (f / TINY / "adapter/head.safetensors").unlink(), (), 2, "head.safetensors"),
    "damaged": (lambda f: (f / TINY / "adapter/dpft.json").write_text("{}"), (), 2, "damaged"),
    "another rank": (None, ("method.rank=3",), 2, "method"),
    "other labels": (None, ('data.labels=["good", "bad"]',), 2, "labels"),
    "another base": (
        lambda f: shutil.copytree(f / "bert", f / "other"), ("model.source=./other",), 2, "on folder:bert"
    ),
    "another unit": (None, ('data.group="id"',), 3, "start.run had data.group=None, this recipe has id"),
    "all heads": (None, ("start.prune=", "start.heads=2"), 2, "fewer than the 2 heads"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "overrides", "code", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_refused_before_anything_is_spent(
    act: Any, overrides: tuple[str, ...], code: int, words: str, copy: Any
) -> None:
    """One sentence; the books as they were, nothing released."""
    if act:
        act(copy.folder)
    before = (copy.folder / "books.jsonl").read_bytes()
    answer = copy.dpft("run", "second.toml", *(part for o in overrides for part in ("--set", o)))
    assert answer.code == code, answer.err
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert (copy.folder / "books.jsonl").read_bytes() == before
    assert not (copy.folder / "runs" / "second" / "adapter").exists()


def test_a_recipe_without_books_is_refused(copy: Any) -> None:
    """Also by ``dpft plan``, which reads the recipe and nothing else."""
    text = (copy.folder / "second.toml").read_text()
    (copy.folder / "second.toml").write_text(text.replace(BOOKS, ""))
    for command in ("run", "plan"):
        answer = copy.dpft(command, "second.toml")
        assert answer.code == 2
        assert "start" in answer.err
        assert "[ledger]" in answer.err
        assert answer.err.count("\n") == 1


def test_masks_need_dsee_and_one_pruning(copy: Any) -> None:
    lora = copy.dpft("plan", "second.toml", "--set", "start.heads=1")
    assert (lora.code, "either prune or heads" in lora.err) == (2, True)
    text = (copy.folder / "second.toml").read_text()
    (copy.folder / "second.toml").write_text(text.replace(DSEE, '[method]\nname = "lora"\n'))
    answer = copy.dpft("plan", "second.toml")
    assert (answer.code, "only the method dsee" in answer.err) == (2, True)


def test_an_interrupted_second_phase_goes_on(copy: Any) -> None:
    """And not from another first phase than it began with."""
    (copy.folder / "records.csv").rename(copy.folder / "away.csv")
    assert copy.dpft("run", "second.toml").code != 0
    (copy.folder / "away.csv").rename(copy.folder / "records.csv")
    head = copy.folder / "runs" / "tiny" / "adapter" / "head.safetensors"
    content = head.read_bytes()
    head.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    answer = copy.dpft("run", "second.toml", "--resume")
    assert (answer.code, "start.run changed" in answer.err) == (3, True)
    head.write_bytes(content)
    answer = copy.dpft("run", "second.toml", "--resume")
    assert answer.code == 0, answer.err
    assert [r.committed for r in Ledger.read(copy.folder / "books.jsonl").runs().values()][-1] == 5


def test_a_third_phase_counts_all_three(copy: Any) -> None:
    assert copy.dpft("run", "second.toml").code == 0
    third = copy.dpft(
        "run", "second.toml", "--set", "name=third", "--set", "start.run=runs/second", "--set", "method.pruned=true",
        "--set", "start.prune=0.5",
    )  # fmt: skip
    assert third.code == 0, third.err
    made = read(copy.folder / "runs" / "third" / "privacy.json")
    total = certify(Sequential([FIRST, SECOND, SECOND]), UNIT, 1e-5).bound
    assert made["epsilon"]["upper"] == pytest.approx(total.upper)


def test_dpft_prune_writes_a_model_with_exact_zeros(phases: Any, bert: Path, tmp_path: Path) -> None:
    """The share asked for, as the masks and the README say; loads with plain transformers."""
    import numpy as np
    from safetensors.numpy import load_file

    to = tmp_path / "pruned"
    answer = phases.dpft("prune", "runs/tiny", "--to", str(to), "--ratio", "0.25", "--base", str(bert))
    assert answer.code == 0, answer.err
    weights, masks = load_file(to / "model.safetensors"), load_file(to / "masks.safetensors")
    kept = {n: np.unpackbits(m)[: weights[n].size].reshape(weights[n].shape).astype(bool) for n, m in masks.items()}
    assert len(kept) == 6
    assert all(not weights[name][~mask].any() and weights[name][mask].all() for name, mask in kept.items())
    zeros, total = sum(int((weights[n] == 0).sum()) for n in kept), sum(weights[n].size for n in kept)
    assert zeros == round(0.25 * total)
    readme = (to / "README.md").read_text()
    for part in (f"{zeros:,} of the {total:,}", "25.0%", "post-processing and costs no privacy", "masks.safetensors"):
        assert part in readme
        assert part in answer.out
    assert (to / "privacy.json").read_bytes() == (phases.run / "privacy.json").read_bytes()


def test_dpft_prune_drops_heads(phases: Any, bert: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    to = tmp_path / "pruned"
    answer = phases.dpft("prune", "runs/tiny", "--to", str(to), "--heads", "1", "--base", str(bert))
    assert answer.code == 0, answer.err
    weights = load_file(to / "model.safetensors")
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        assert (weights[f"encoder.layer.0.attention.{name}.weight"] == 0).sum() == 16 * 16 // 2
    assert "1 heads of each attention" in (to / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ratio", "0.2", "--heads", "1"), "either ratio or heads"),
        (("--ratio", "1.5"), "ratio=1.5"),
        (("--heads", "2"), "fewer than the 2 heads"),
        (("--scope", "row"), "scope='row'"),
    ],
)
def test_dpft_prune_refuses_in_one_sentence(
    options: tuple[str, ...], words: str, phases: Any, bert: Path, tmp_path: Path
) -> None:
    to = tmp_path / "home" / "pruned"
    answer = phases.dpft("prune", "runs/tiny", "--to", str(to), "--base", str(bert), *options)
    assert answer.code == 2
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert not to.exists()
