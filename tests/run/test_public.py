"""Declared public records and paid masks, from a recipe: who sees what, what it costs, how a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dpft_accounting import Ledger
from torch import nn

import dpft
from dpft.config import load_recipe
from dpft.engine.plan import Plan
from dpft.errors import InputError
from dpft.models.source import resolve
from dpft.peft.sparse_adapter import prunable
from dpft.report.write import write_report
from dpft.run import build_model

LEAVE_LORA = ("method.rank=", "method.targets=")
SPARSE = (*LEAVE_LORA, "method.name=sparse-adapter", "method.bottleneck=4", "method.density=0.4", "privacy.steps=5")
FISHER = (*LEAVE_LORA, "method.name=lst", "method.reduction=4", "method.init=fisher", "privacy.steps=5")
SNIP = (*SPARSE, "method.mask=snip")
PUBLIC = ("public.source=csv", "public.path=public.csv", 'public.labels=["bad", "good"]', "public.max_length=16")
WEIGHTS = 2 * 2 * 4 * 16  # one block, two adapters
TRAINED = round(0.4 * WEIGHTS) + 2 * (4 + 16) + 2 * 16 + 2


def sets(*fields: str) -> list[str]:
    return [part for field in fields for part in ("--set", field)]


def write_public(place: Any, lines: int = 30) -> None:
    rows = [f"a film that was {('dull', 'fine')[i % 2]} open{i},{('bad', 'good')[i % 2]}" for i in range(lines)]
    (place.folder / "public.csv").write_text("\n".join(["text,label", *rows]) + "\n")


def supports(folder: Path, base: Path) -> list[torch.Tensor]:
    return [layer.mask for layer in prunable(dpft.load(folder / "adapter", base=str(base)))]


@pytest.mark.parametrize("mask", ["snip", "grasp"])
def test_public_records_choose_the_mask(place: Any, mask: str) -> None:
    """Named in the output, in plan and statement; the mask is that of those records, whatever the private ones are."""
    write_public(place)
    fields = (*SPARSE, f"method.mask={mask}", *PUBLIC)
    answer = place.dpft("run", "tiny.toml", *sets(*fields))
    assert answer.code == 0, answer.err
    assert "looking at the public records csv:public.csv@train" in " ".join(answer.out.split())
    assert json.loads((place.run / "plan.json").read_text())["public_records"] == "csv:public.csv@train"
    said = json.loads((place.run / "privacy.json").read_text())
    assert said["public_records"] == "csv:public.csv@train"
    assert any("csv:public.csv@train: the recipe declares them public" in item for item in said["not_covered"])
    assert "csv:public.csv@train" in (place.run / "report.html").read_text()
    assert said["trained_parameters"]["count"] == TRAINED
    found = supports(place.run, place.folder / "bert")
    place.records(37, changed="y")
    again = place.dpft("run", "tiny.toml", "--out", "other", *sets(*fields))
    assert again.code == 0, again.err
    other = supports(place.folder / "other", place.folder / "bert")
    assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_public_records_start_the_ladder(place: Any) -> None:
    """Fisher information of those records, whatever the private ones are; of others it is another."""
    write_public(place)
    starts = []
    for out, change in (("one", ""), ("two", "private"), ("three", "public")):
        if change == "private":
            place.records(37, changed="y")
        elif change == "public":
            text = (place.folder / "public.csv").read_text().replace("film", "plot").replace("dull", "bad")
            (place.folder / "public.csv").write_text(text)
        answer = place.dpft("run", "tiny.toml", "--out", out, *sets(*FISHER, *PUBLIC))
        assert answer.code == 0, answer.err
        assert "looking at the public records csv:public.csv@train" in " ".join(answer.out.split())
        starts.append((place.folder / out / "private" / "informed.safetensors").read_bytes())
    said = json.loads((place.folder / "one" / "privacy.json").read_text())
    assert said["public_records"] == "csv:public.csv@train"
    assert any("csv:public.csv@train: the recipe declares them public" in item for item in said["not_covered"])
    assert starts[0] == starts[1] != starts[2]


def test_the_private_file_is_not_opened_for_the_mask(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_public(place)
    (place.folder / "records.csv").unlink()
    monkeypatch.chdir(place.folder)
    recipe = load_recipe("tiny.toml", [*SPARSE, "method.mask=snip", *PUBLIC])
    model, _ = build_model(recipe, resolve(recipe.model.source, None))
    assert sum(len(layer.values) for layer in prunable(model)) == round(0.4 * WEIGHTS)


def test_the_mask_is_snip_of_the_public_records(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: a head drawn from N(0, 0.02^2), the gradient of the mean cross-entropy, the highest |g w| of all."""
    write_public(place, 7)
    monkeypatch.chdir(place.folder)
    recipe = load_recipe("tiny.toml", [*SPARSE, "method.mask=snip", *PUBLIC])
    source = resolve(recipe.model.source, None)
    found = [layer.mask for layer in prunable(build_model(recipe, source)[0])]
    dense = load_recipe("tiny.toml", [*SPARSE, "method.mask=snip", "method.density=1.0", *PUBLIC])
    model, _ = build_model(dense, source)
    layers = prunable(model)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place.folder / "bert")
    rows = [line.rsplit(",", 1) for line in (place.folder / "public.csv").read_text().splitlines()[1:]]
    drawn = torch.empty(2, 16).normal_(0, 0.02, generator=torch.Generator().manual_seed(recipe.seed))
    model.head.weight.data.copy_(drawn)
    total = torch.zeros(())
    for text, label in rows:
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        logits = model(**inputs)
        total = total + nn.functional.cross_entropy(logits, torch.tensor([("bad", "good").index(label)]))
    total.div(len(rows)).backward()
    scores = torch.cat([(layer.values.grad * layer.values.detach()).abs() for layer in layers])  # type: ignore[operator]
    highest = torch.zeros(WEIGHTS, dtype=torch.bool)
    highest[scores.argsort(descending=True)[: round(0.4 * WEIGHTS)]] = True
    assert torch.equal(torch.cat([m.flatten() for m in found]), highest)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("method.mask=snip",), "declare public ones in a [public] table"),
        (FISHER, "The method 'lst', as it is set, looks at records before it trains: declare public ones"),
        ((*FISHER, *PUBLIC, "method.init=prune"), "looks at none before it trains; leave the table out"),
        ((*FISHER, *PUBLIC, "public.path=link.csv"), "a file of [data] is among the files of [public]"),
        (("method.mask=random", *PUBLIC), "looks at none before it trains; leave the table out"),
        ((*PUBLIC, "method.mask=snip", "public.path=./records.csv"), "public: the records of [data] that train or are"),
        ((*PUBLIC, "method.mask=snip", "public.path=record*.csv"), "a file of [data] is among the files of [public]"),
        ((*PUBLIC, "method.mask=snip", "public.path=link.csv"), "a file of [data] is among the files of [public]"),
        ((*PUBLIC, "method.mask=snip", 'public.labels=["good", "bad"]'), "public.labels: expected records of the same"),
        ((*PUBLIC, "method.mask=snip", "public.heldout=0.1"), "public.heldout: nothing is evaluated"),
        ((*PUBLIC, "method.mask=snip", "public.pth=x"), 'public.pth is not a field of a recipe; did you mean "public.'),
        (("method.mask=snip", "method.mask_steps=5"), "below the plan's 5 steps"),
        (("method.mask=grasp", "method.mask_steps=1"), 'method.mask_steps: pays for the gradients of mask = "snip"'),
    ],
)
def test_refused_before_anything_is_read(place: Any, fields: tuple[str, ...], words: str) -> None:
    """Exit code 2, one sentence, no ledger; the records are not there, so reading them would say so."""
    text = (place.folder / "records.csv").read_text()
    (place.folder / "link.csv").symlink_to(place.folder / "records.csv")
    if "public.path=record*.csv" in fields:
        (place.folder / "records.csv").write_text(text)
    else:
        (place.folder / "records.csv").unlink()
    method = fields if fields[: len(LEAVE_LORA)] == LEAVE_LORA else (*SPARSE, *fields)
    answer = place.dpft("run", "tiny.toml", *sets(*method))
    assert answer.code == 2
    assert words in answer.err, answer.err
    assert answer.err.count("\n") == 1
    assert not (place.run / "ledger.jsonl").exists()


def test_a_paid_mask_is_in_ledger_and_statement(place: Any) -> None:
    """Five steps in all, two of them for the mask: one epsilon, that of five."""
    answer = place.dpft("run", "tiny.toml", *sets(*SPARSE, "method.mask=snip", "method.mask_steps=2"))
    assert answer.code == 0, answer.err
    plan = Plan.from_dict(json.loads((place.run / "plan.json").read_text())["plan"])
    assert plan.steps == 5
    ledger = Ledger.read(place.run / "ledger.jsonl")
    assert {name: (run.mech, run.reserved, run.committed) for name, run in ledger.runs().items()} == {
        "mask": (plan.mechanism.with_steps(2), 2, 2),
        "train": (plan.mechanism.with_steps(3), 3, 3),
    }
    assert ledger.spent(plan.delta).upper == pytest.approx(plan.epsilon.upper, rel=1e-6)
    said = json.loads((place.run / "privacy.json").read_text())
    assert (said["steps_charged"], said["steps_planned"], said["mask_steps"]) == (5, 5, 2)
    assert said["epsilon"]["upper"] == plan.epsilon.upper
    assert said["released"].startswith("the mask")
    assert said["trained_parameters"]["count"] == TRAINED
    assert sum(int(m.sum()) for m in supports(place.run, place.folder / "bert")) == round(0.4 * WEIGHTS)
    assert write_report(place.run) == said


def test_a_report_that_hides_the_mask_is_refused(place: Any) -> None:
    """Without it the ledger does not fit the plan."""
    answer = place.dpft("run", "tiny.toml", *sets(*SPARSE, "method.mask=snip", "method.mask_steps=2"))
    assert answer.code == 0, answer.err
    facts = json.loads((place.run / "plan.json").read_text())
    (place.run / "plan.json").write_text(json.dumps({**facts, "mask": None}))
    assert place.dpft("report", str(place.run)).code == 3


def test_a_run_with_a_paid_mask_is_charged_once_in_the_books(place: Any) -> None:
    books = ("ledger", "create", "books.jsonl", "--dataset", "notes", "--unit", "note", "--epsilon", "50")
    made = place.dpft(*books, "--delta", "1e-5")
    assert made.code == 0, made.err
    fields = (*SPARSE, "method.mask=snip", "method.mask_steps=2", "ledger.file=books.jsonl", "ledger.dataset=notes")
    answer = place.dpft("run", "tiny.toml", *sets(*fields))
    assert answer.code == 0, answer.err
    (charge,) = Ledger.read(place.folder / "books.jsonl").runs().values()
    assert (charge.mech.planned, charge.reserved, charge.committed) == (5, 5, 5)


class StoppedError(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, where: str, when: int) -> None:
    """Die in the ``when``-th call of the engine's method ``where``, as a killed process would: nothing is tidied."""
    from dpft.engine.engine import PrivateEngine
    from dpft.engine.mask_release import MaskEngine

    owner: Any = {"mask": MaskEngine, "train": PrivateEngine}[where]
    seen, before = [], owner._update

    def update(self: Any, mean: Any) -> None:
        if type(self) is owner:
            seen.append(1)
            if len(seen) == when:
                raise StoppedError
        before(self, mean)

    monkeypatch.setattr(owner, "_update", update)


@pytest.mark.parametrize(("where", "when"), [("mask", 1), ("mask", 2), ("train", 1), ("train", 2)])
def test_a_stopped_run_goes_on_with_its_mask(
    place: Any, monkeypatch: pytest.MonkeyPatch, where: str, when: int
) -> None:
    """Every step stays charged, none comes for free, and the mask is not chosen again."""
    fields = sets(*SPARSE, "method.mask=snip", "method.mask_steps=2", "train.checkpoint_every=1")
    with monkeypatch.context() as patch:
        stop_at(patch, where, when)
        assert place.dpft("run", "tiny.toml", *fields).code == 1
    kept = place.run / "private" / "informed.safetensors"
    assert kept.exists() == (where == "train")
    before = kept.read_bytes() if kept.exists() else b""
    answer = place.dpft("run", "tiny.toml", "--resume", *fields)
    assert answer.code == 0, answer.err
    runs = Ledger.read(place.run / "ledger.jsonl").runs()
    assert {name: run.reserved for name, run in runs.items()} == {"mask": 2, "train": 3}
    assert not before or kept.read_bytes() == before
    assert json.loads((place.run / "privacy.json").read_text())["steps_charged"] == 5


def test_where_every_paid_gradient_is_lost_nothing_is_released(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = sets(*SPARSE, "method.mask=snip", "method.mask_steps=1")
    with monkeypatch.context() as patch:
        stop_at(patch, "mask", 1)
        assert place.dpft("run", "tiny.toml", *fields).code == 1
    answer = place.dpft("run", "tiny.toml", "--resume", *fields)
    assert answer.code == 1
    assert "none of its gradients is left" in answer.err
    assert not (place.run / "adapter").exists()


@pytest.mark.parametrize("method", [SNIP, FISHER], ids=["snip", "fisher"])
def test_a_resumed_run_does_not_read_the_public_records_again(
    place: Any, monkeypatch: pytest.MonkeyPatch, method: tuple[str, ...]
) -> None:
    write_public(place)
    fields = sets(*method, *PUBLIC, "train.checkpoint_every=1")
    kept = place.run / "private" / "informed.safetensors"
    with monkeypatch.context() as patch:
        stop_at(patch, "train", 2)
        assert place.dpft("run", "tiny.toml", *fields).code == 1
    before = kept.read_bytes()
    (place.folder / "public.csv").unlink()
    answer = place.dpft("run", "tiny.toml", "--resume", *fields)
    assert answer.code == 0, answer.err
    assert kept.read_bytes() == before
    said = json.loads((place.run / "privacy.json").read_text())
    assert said["steps_charged"] == 5
    assert method == FISHER or said["trained_parameters"]["count"] == TRAINED


def test_a_changed_record_is_noticed_between_mask_and_training(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = sets(*SPARSE, "method.mask=snip", "method.mask_steps=2")
    with monkeypatch.context() as patch:
        stop_at(patch, "mask", 2)
        assert place.dpft("run", "tiny.toml", *fields).code == 1
    place.records(50, changed="x")
    answer = place.dpft("run", "tiny.toml", "--resume", *fields)
    assert answer.code == 3
    assert "The records changed" in answer.err


def test_a_hub_split_of_its_own_may_be_public() -> None:
    text = (Path(__file__).parents[2] / "recipes" / "methods" / "sparse-adapter.toml").read_text()
    hub = ("data.source=hub", "data.path=some/set", "data.heldout=", "method.mask=snip", "public.source=hub")
    from dpft.config import parse_recipe

    given = (*hub, "public.path=some/set", 'public.labels=["negative", "positive"]')
    assert parse_recipe(text, [*given, "public.split=validation"]).public is not None
    for own in ((), ("data.eval_split=validation", "public.split=validation")):
        with pytest.raises(InputError, match="are not public"):
            parse_recipe(text, [*given, *own])
