"""Every method runs end to end from a recipe, and the statement counts what it trained."""

from __future__ import annotations

import base64
import json
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dpft
from dpft.config import OptimizerSection
from dpft.schedule import build_optimizer, set_rates

WIDTH, INNER, CLASSES, POSITIONS, VOCABULARY = 16, 32, 2, 32, 67
HEAD = WIDTH * CLASSES + CLASSES
# One block: query, key, value, attention output, two feed-forward layers, two LayerNorms; one more on the embeddings.
WEIGHTS = 4 * WIDTH**2 + 2 * WIDTH * INNER
BIASES = 4 * WIDTH + INNER + WIDTH
NORMS = 2 * 2 * WIDTH
LEAVE_LORA = ("--set", "method.rank=", "--set", "method.targets=")

# Overrides of the tiny recipe, and the number of trained parameters beside the head.
METHODS: dict[str, tuple[list[str], int]] = {
    "bitfit": ([], BIASES + 3 * WIDTH),
    "norms": ([], NORMS + 2 * WIDTH),
    "ia3": ([], 2 * WIDTH + INNER),
    "head": ([], 0),
    "last-k": (["k=1"], WEIGHTS + BIASES + NORMS),
    "full": (['targets=["all-linear"]'], WEIGHTS + BIASES),
    "full, whole": ([], WEIGHTS + BIASES + NORMS + (VOCABULARY + POSITIONS + 2) * WIDTH + 2 * WIDTH),
    "tokens": (["tokens=[5, 6, 9]"], 3 * WIDTH),
    "raft": ([], 10),
    "lst": (["reduction=2"], 1017),
    "dsee": (["rank=2", "nonzeros=4"], 2 * (2 * 2 * WIDTH + 4)),
    "sparse-adapter": (["bottleneck=4"], 2 * 4 * WIDTH + 2 * (4 + WIDTH)),
    "prompt": (["length=4"], 4 * WIDTH),
    "prefix": (["length=4"], 2 * 4 * WIDTH),
    "attempt": (["count=2", "length=4", "width=5"], (4 + 2 * 5) * WIDTH),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_with_any_method_runs(name: str, place: Any) -> None:
    """F1, F5."""
    fields, count = METHODS[name]
    name = name.partition(",")[0]
    sets = [part for field in (f"name={name}", *fields) for part in ("--set", f"method.{field}")]
    # The fields of the recipe's own method go first: the same name may be set again.
    answer = place.dpft("run", "tiny.toml", *LEAVE_LORA, *sets, "--set", "privacy.steps=3")
    assert answer.code == 0, answer.err
    said = json.loads((place.run / "privacy.json").read_text())
    assert said["trained_parameters"]["count"] == count + HEAD
    assert f'name = "{name}"' in (place.run / "run.toml").read_text()
    loaded = dpft.load(place.run / "adapter", base=str(place.folder / "bert"))
    assert sum(p.numel() for p in loaded.parameters() if p.requires_grad) == count + HEAD


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_activations_are_recomputed_in_every_pass_of_training(
    enabled: str, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7: without dropout too, and in the twin without privacy."""
    recomputed = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        recomputed.append(torch.is_grad_enabled())
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counting)
    sets = ("--set", f"privacy.enabled={enabled}", "--set", "privacy.steps=3")
    assert place.dpft("run", "tiny.toml", *sets, "--out", str(place.folder / "kept")).code == 0
    assert not recomputed
    answer = place.dpft("run", "tiny.toml", *sets, "--set", "train.recompute=true")
    assert answer.code == 0, answer.err
    assert recomputed
    assert all(recomputed)
    assert "recompute = true" in (place.run / "run.toml").read_text()


def test_what_raft_learnt_is_drawn_in_the_report(place: Any) -> None:
    """The report made anew has it too, and a run of another method has none."""
    answer = place.dpft("run", "tiny.toml", *LEAVE_LORA, "--set", "method.name=raft", "--set", "privacy.steps=3")
    assert answer.code == 0, answer.err
    picture = (place.run / "adapter" / "activations.svg").read_bytes()
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    page = (place.run / "report.html").read_text()
    assert f'src="data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"' in page
    assert place.dpft("report", str(place.run)).code == 0
    assert (place.run / "report.html").read_text() == page
    assert place.dpft("run", "tiny.toml", "--out", str(place.folder / "other")).code == 0
    assert not (place.folder / "other" / "adapter" / "activations.svg").exists()
    assert "data:image" not in (place.folder / "other" / "report.html").read_text()


def test_a_preset_runs_and_is_written_out_in_full(place: Any) -> None:
    """The run's own recipe does not depend on what the preset may mean one day."""
    sets = ("--set", "method.name=yu2022-adapter", "--set", "method.bottleneck=4", "--set", "privacy.steps=3")
    answer = place.dpft("run", "tiny.toml", *LEAVE_LORA, *sets)
    assert answer.code == 0, answer.err
    written = (place.run / "run.toml").read_text()
    assert "yu2022" not in written
    assert 'name = "adapter"\nbottleneck = 4\nbias = false\n' in written
    said = json.loads((place.run / "privacy.json").read_text())
    assert said["trained_parameters"]["count"] == 2 * 2 * 4 * WIDTH + HEAD


def test_another_methods_fields_are_refused_before_anything_is_written(place: Any) -> None:
    answer = place.dpft("run", "tiny.toml", "--set", "method.name=bitfit")
    assert answer.code == 2
    assert "--set method.rank=" in answer.err
    assert not place.run.exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["name=last-k", "k=2"], "method.k=2 to be at most 1"),
        (["name=tokens", "tokens=[100000]"], "method.tokens"),
        (["name=full", 'targets=["qery"]'], "it has query"),
        (["name=ia3", 'targets=["key"]', 'feedforward=["LayerNorm"]'], "LayerNorm"),
        (["name=prompt", "length=17"], "at most 15 tokens"),
        (["name=attempt", "count=2", "length=4", "tasks=2"], "one task's records"),
        (["name=attempt", 'sources="nothing.safetensors"'], "as dpft source-prompt writes it"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_a_record_is_read(
    fields: list[str], words: str, place: Any
) -> None:
    """F4: there are no records to read."""
    (place.folder / "records.csv").unlink()
    sets = [part for field in fields for part in ("--set", f"method.{field}")]
    answer = place.dpft("run", "tiny.toml", *LEAVE_LORA, *sets)
    assert answer.code == 2
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert not (place.run / "ledger.jsonl").exists()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_head_alone_has_its_own_rate(name: Any) -> None:
    """The group of everything else is there, and empty."""
    head = nn.Linear(2, 2)
    model = nn.ModuleDict({"frozen": nn.Linear(2, 2).requires_grad_(False), "head": head})
    section = OptimizerSection(name=name, lr=0.1, head_lr=0.5)
    optimizer = build_optimizer(section, model, head)
    set_rates(optimizer, section, 1, 2)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.25]
    before = head.weight.detach().clone()
    for p in head.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not torch.equal(head.weight, before)
    assert optimizer.state_dict()["param_groups"][0]["params"] == []
