"""Merged models in 8 bits, and with their zeros kept: what the README says is what plain transformers computes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import dpft
from dpft.adapter import save_model
from dpft.errors import InputError
from dpft.export import export
from dpft.models.classifier import TextClassifier
from dpft.models.source import load_encoder, resolve
from dpft.peft.inject import linears
from dpft.quantise import FILE, SCALE

TEXTS = ["the film was good", "dull", "a very bad plot was a bad plot", "fine", "the plot was very very dull"]
SHOW = f"\nprint('LOGITS', logits({TEXTS!r}).tolist())\nimport sys; assert not {{'dpft', 'peft'}} & set(sys.modules)"


@pytest.fixture
def trained(bert: Path, tmp_path: Path) -> Callable[..., tuple[TextClassifier, Path]]:
    """A classifier with a method away from its start, and where it was saved."""

    def make(method: Any, prune: bool = False) -> tuple[TextClassifier, Path]:
        base = bert
        if prune:
            encoder = AutoModel.from_pretrained(bert)
            for _, layer in linears(encoder, ("all-linear",)):
                layer.weight.data[layer.weight.abs() <= layer.weight.abs().median()] = 0.0
            encoder.save_pretrained(base := tmp_path / "bert")
            AutoTokenizer.from_pretrained(bert).save_pretrained(base)
        model = TextClassifier(load_encoder(resolve(str(base))), 2, "mean", None)
        dpft.attach(model, method, train=("head",))
        torch.manual_seed(0)
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p) * p.requires_grad)
        folder = tmp_path / "adapter"
        save_model(model, method, folder, base="folder:bert", revision=None, labels=("bad", "good"))
        return model, folder

    return make


def logits(model: nn.Module, bert: Path) -> Tensor:
    batch = AutoTokenizer.from_pretrained(bert)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found: Tensor = model(**batch)
    return found


def by_readme(folder: Path) -> Tensor:
    """The README's python in a process without dpft."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = "import warnings; warnings.simplefilter('error')\n" + code.replace("path/to/this/folder", str(folder)) + SHOW
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "newly initialized" not in made.stdout + made.stderr
    return torch.tensor(json.loads(made.stdout.split("LOGITS", 1)[1]))


def test_the_folder_loads_by_its_readme_and_stays_close(trained: Any, bert: Path, tmp_path: Path) -> None:
    model, adapter = trained(dpft.LoRA(rank=2))
    expected = logits(model, bert)
    export(adapter, tmp_path / "plain", merged=True, base=str(bert))
    export(adapter, tmp_path / "m", merged=True, base=str(bert), int8=True)
    files = {path.name for path in (tmp_path / "m").iterdir()}
    assert {"config.json", FILE, "head.safetensors", "tokenizer.json", "README.md"} <= files
    assert "model.safetensors" not in files
    found = by_readme(tmp_path / "m")
    assert (found - expected).norm() <= 0.02 * expected.norm()
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert (found - expected).norm() > 0  # it is quantised
    stored, plain = load_file(tmp_path / "m" / FILE), load_file(tmp_path / "plain" / "model.safetensors")
    eights = {name for name, t in stored.items() if t.dtype == torch.int8}
    assert eights == {name for name in plain if plain[name].dim() == 2 and "embeddings" not in name}
    for name in eights:
        error = (plain[name] - stored[name] * stored[name + SCALE]).abs()
        assert (error <= stored[name + SCALE] / 2 * (1 + 1e-5)).all()
    assert "8 bits" in (tmp_path / "m" / "README.md").read_text()


def test_zeros_of_a_sparse_base_stay_zero(trained: Any, tmp_path: Path) -> None:
    model, adapter = trained(dpft.Full(targets=("all-linear",)), prune=True)
    export(adapter, tmp_path / "m", merged=True, base=str(tmp_path / "bert"), int8=True)
    stored = load_file(tmp_path / "m" / FILE)
    for name, layer in linears(AutoModel.from_pretrained(tmp_path / "bert"), ("all-linear",)):
        assert not stored[f"{name}.weight"][layer.weight == 0].any()
    torch.testing.assert_close(by_readme(tmp_path / "m"), logits(model, tmp_path / "bert"), rtol=0.05, atol=0.02)


def test_a_kept_pattern_says_how_far_it_is_from_what_was_trained(trained: Any, tmp_path: Path) -> None:
    model, adapter = trained(dpft.LoRA(rank=2), prune=True)
    base = str(tmp_path / "bert")
    with pytest.raises(InputError, match="--keep-pattern"):
        export(adapter, tmp_path / "m", merged=True, base=base)
    assert not (tmp_path / "m").exists()
    found = export(adapter, tmp_path / "m", merged=True, base=base, keep_pattern=True)
    (said,) = found.changed
    assert re.search(r"zeros were kept in 2 layers.*by up to \d+\.\d\d% of its norm", said)
    assert said in (tmp_path / "m" / "README.md").read_text()
    merged, dense = AutoModel.from_pretrained(tmp_path / "m"), dpft.merge(model, keep_pattern=True).encoder
    zeros = dict(linears(AutoModel.from_pretrained(base), ("all-linear",)))
    for name, layer in linears(merged, ("all-linear",)):
        assert not layer.weight[zeros[name].weight == 0].any()
        torch.testing.assert_close(layer.weight, dense.get_submodule(name).weight)


@pytest.mark.parametrize("option", ["int8", "keep_pattern"])
def test_both_are_of_a_merged_model(option: str, trained: Any, tmp_path: Path) -> None:
    _, adapter = trained(dpft.LoRA(rank=2))
    with pytest.raises(InputError, match="--merge"):
        export(adapter, tmp_path / "m", **{option: True})
    assert not (tmp_path / "m").exists()
