"""Every task through the whole run, on tiny models: what is measured, what leaves, with privacy and without."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dpft.models.language import LanguageModel

GPT2 = {"model_type": "gpt2", "vocab_size": 70, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
T5 = {
    "model_type": "t5", "vocab_size": 70, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 3, "dropout_rate": 0.0,
}  # fmt: skip
FULL = ('method.name="full"', "method.rank=", "method.targets=")
DRAWN = ('model.tokenizer="./bert"', *FULL, "optimizer.lr=0.01")
TASKS: dict[str, tuple[str, ...]] = {
    "multilabel": ('data.label="several"', 'data.labels=["loud", "long"]'),
    "regression": ('data.label="value"', "data.labels="),
    "token-classification": ('data.text="words"', 'data.label="tags"', 'data.labels=["w", "x"]'),
    "causal-lm": (
        'data.target="more"',
        "data.target_length=12",
        "data.labels=",
        'model.source="config:gpt2.json"',
        *DRAWN,
    ),
    "seq2seq": ('data.target="more"', "data.target_length=12", "data.labels=", 'model.source="config:t5.json"', *DRAWN),
}
FIGURES = {
    "multilabel": {"labels right", "F1"},
    "regression": {"root mean squared error", "correlation"},
    "token-classification": {"accuracy", "F1, mean over tags"},
    "causal-lm": {"perplexity", "perplexity before training"},
    "seq2seq": {"perplexity", "perplexity before training"},
}


def write_records(folder: Path, count: int = 60) -> None:
    """JSON lines with a column for every task."""
    rows = []
    for i in range(count):
        kind = ("bad", "good")[i % 2]
        words = ["the", "film", "abcdefghijklmnopqrstuvwxyz"[i % 26], kind] + ["very"] * (i % 3)
        rows.append({
            "text": " ".join(words), "words": words, "tags": ["x" if w == kind else "w" for w in words],
            "several": ["loud"] * (i % 2) + ["long"] * (i % 3 == 2), "value": float(i % 2) - 0.5,
            "more": f"a {kind} plot", "who": f"p{i // 3}",
        })  # fmt: skip
    (folder / "records.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(place: Any, task: str, *overrides: str, out: str = "runs/tiny") -> Any:
    write_records(place.folder)
    (place.folder / "gpt2.json").write_text(json.dumps(GPT2))
    (place.folder / "t5.json").write_text(json.dumps(T5))
    common = ('data.source="json"', 'data.path="records.json"', f'data.task="{task}"', "evaluate.public=true")
    sets = [part for o in (*common, *TASKS.get(task, ()), *overrides) for part in ("--set", o)]
    answer = place.dpft("run", "tiny.toml", *sets, "--out", out)
    assert answer.code == 0, answer.err
    return answer


def metrics(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["name"].removesuffix(" on held-out records"): row["value"] for row in rows}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_and_its_model_loads_again(place: Any, task: str) -> None:
    run(place, task)
    found = metrics(place.run)
    assert set(found) == {*FIGURES[task], "held-out records"}
    assert all(math.isfinite(value) for value in found.values())
    model = _loaded(place, task)
    assert not model.training
    assert isinstance(model, LanguageModel) == (task in ("causal-lm", "seq2seq"))


def _loaded(place: Any, task: str) -> torch.nn.Module:
    import dpft

    drawn = task in ("causal-lm", "seq2seq")
    return dpft.load(place.run / "adapter", base=None if drawn else str(place.folder / "bert"))


@pytest.mark.parametrize("task", ["regression", "token-classification", "causal-lm"])
def test_without_noise_the_task_is_learnt(place: Any, task: str) -> None:
    """The loss is the task's: a head or a model that trains long enough without privacy gets better at it."""
    steps = ("privacy.enabled=false", "privacy.steps=60", *FULL, "optimizer.lr=0.01", "optimizer.head_lr=0.03")
    run(place, task, *(steps if task != "causal-lm" else steps[:-1]))
    found = metrics(place.run)
    if task == "causal-lm":
        assert found["perplexity"] < 0.3 * found["perplexity before training"]
    elif task == "regression":
        assert found["correlation"] > 0.8
    else:
        assert found["accuracy"] > 0.95


def test_a_run_without_privacy_says_so_everywhere(place: Any) -> None:
    answer = run(place, "regression", "privacy.enabled=false")
    assert "NOT PRIVATE" in answer.out
    assert "guarantee" not in answer.out  # the plan's promise is not kept, so it is not shown
    assert "preflight" not in answer.out
    planned = place.dpft("plan", "tiny.toml", "--set", "privacy.enabled=false")
    assert planned.code == 2
    assert planned.err.startswith("error: privacy.enabled")
    assert not (place.run / "ledger.jsonl").exists()
    made = json.loads((place.run / "privacy.json").read_text())
    assert made["private"] is False
    assert made["epsilon"] == {"lower": "inf", "upper": "inf"}
    for name in ("report.md", "report.html"):
        text = (place.run / name).read_text()
        assert "NOT PRIVATE" in text
        assert "satisfies" not in text
    assert json.loads((place.run / "adapter" / "dpft.json").read_text())["private"] is False
    assert "without privacy" in (place.run / "adapter" / "NOT-PRIVATE").read_text()
    assert "enabled = false" in (place.run / "run.toml").read_text()
    exported = place.dpft("export", "runs/tiny", "--to", "out")
    assert exported.code == 0, exported.err
    assert "NOT PRIVATE" in (place.folder / "out" / "README.md").read_text()
    assert (place.folder / "out" / "NOT-PRIVATE").exists()


def test_without_privacy_no_ledger_may_be_named(place: Any) -> None:
    sets = ("privacy.enabled=false", 'ledger.file="books.jsonl"', 'ledger.dataset="letters"')
    answer = place.dpft("run", "tiny.toml", *(part for o in sets for part in ("--set", o)))
    assert answer.code == 2
    assert answer.err.startswith("error: ledger")


def test_an_interrupted_run_without_privacy_goes_on(place: Any) -> None:
    """Its steps are counted by checkpoints, for it has no ledger."""
    run(place, "regression", "privacy.enabled=false", "privacy.steps=7", out="runs/whole")
    (place.folder / "runs" / "whole" / "privacy.json").unlink()
    sets = ['data.source="json"', 'data.path="records.json"', 'data.task="regression"', "evaluate.public=true",
            *TASKS["regression"], "privacy.enabled=false", "privacy.steps=7"]  # fmt: skip
    options = [part for o in sets for part in ("--set", o)]
    answer = place.dpft("run", "tiny.toml", *options, "--out", "runs/whole", "--resume")
    assert answer.code == 0, answer.err
    assert (place.folder / "runs" / "whole" / "privacy.json").exists()


def test_rows_of_one_group_are_one_unit(place: Any) -> None:
    """20 units of 3 rows: the number of units is the public one, and all rows of a unit are on one side."""
    run(place, "regression", 'data.group="who"', 'data.unit="person"', "data.heldout=0.0", "privacy.sample_rate=",
        "privacy.examples=20", "privacy.expected_batch=5")  # fmt: skip
    made = json.loads((place.run / "privacy.json").read_text())
    assert (made["unit"], made["sample_rate"], made["group"]) == ("person", 0.25, "who")
    assert "one person, with all rows that have its value in the column who, replaced by" in made["adjacency_in_words"]
    short = place.dpft("run", "tiny.toml", *(part for o in (
        'data.source="json"', 'data.path="records.json"', 'data.task="regression"', *TASKS["regression"],
        'data.group="who"', "data.heldout=0.0", "privacy.sample_rate=", "privacy.examples=60",
    ) for part in ("--set", o)), "--out", "runs/rows")  # fmt: skip
    assert short.code == 2
    assert "examples=60" in short.err


def test_an_exported_language_model_writes_without_dpft(place: Any) -> None:
    run(place, "causal-lm")
    answer = place.dpft("export", "runs/tiny", "--to", "out", "--merge", "--base", str(place.folder / "bert"))
    assert answer.code == 0, answer.err
    readme = (place.folder / "out" / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.S)[0].replace("path/to/this/folder", "out")
    code += "\nassert isinstance(write('the film', max_new_tokens=3), str)"
    script = f"{code}\nimport sys\nassert 'dpft' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=place.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_model_writes_is_scored_and_shown(place: Any) -> None:
    """Scores stay private unless the held-out records are public; texts after public prompts are in the report."""
    writing = ('generate.metrics=["bleu", "rouge-l"]', 'generate.prompts=["the film <b>"]', "generate.max_new_tokens=4")
    run(place, "seq2seq", *writing, "evaluate.public=false")
    kept = json.loads((place.run / "private" / "evaluation.json").read_text())
    assert {"bleu", "rouge-l", "perplexity"} <= {name.lower() for name in kept}
    assert not (place.run / "metrics.jsonl").exists()
    texts = json.loads((place.run / "samples.json").read_text())["samples"]
    assert [sample["prompt"] for sample in texts] == ["the film <b>"]
    assert len(texts[0]["texts"]) == 2
    page = (place.run / "report.html").read_text()
    assert "the film &lt;b&gt;" in page
