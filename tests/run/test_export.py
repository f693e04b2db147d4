"""``dpft export``: what leaves loads without dpft, says what it is, and is there whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpft.peft.registry import METHODS

RUN = {"README.md", "privacy.json"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "dpft.json"}
TEXTS = ["the film was good", "dull", "a very bad plot was a bad plot"]


def export(finished: Any, to: Path, *options: str, source: Path | None = None) -> Any:
    return finished.place.dpft("export", str(source or finished.folder), "--to", str(to), *options)


def snippet(folder: Path, **paths: Path) -> str:
    """The README's python, with its placeholders filled in."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace("path/to/this/folder", str(folder))
    for name, path in paths.items():
        assert f"path/to/{name}" in code
        code = code.replace(f"path/to/{name}", str(path))
    return str(code)


def python(code: str) -> str:
    """In a process of its own, so that what the snippet does not import is not there."""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "newly initialized" not in made.stdout + made.stderr  # no weight was made up
    return made.stdout


def ours(adapter: Path, bert: Path) -> Any:
    """The classifier's logits of TEXTS by dpft itself."""
    import torch
    from transformers import AutoTokenizer

    import dpft

    batch = AutoTokenizer.from_pretrained(bert)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return dpft.load(adapter, base=str(bert))(**batch)


SHOW = f"\nprint('LOGITS', logits({TEXTS!r}).tolist())\nimport sys; assert not {{'dpft', 'peft'}} & set(sys.modules)"


# The head by hand, behind the encoder of the adapter's snippet.
BY_HAND = f"""
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
batch = AutoTokenizer.from_pretrained("{{}}")({TEXTS!r}, padding=True, return_tensors="pt")
head = load_file("{{}}/head.safetensors")
mask = batch["attention_mask"][..., None]
with torch.no_grad():
    pooled = (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
print("LOGITS", (pooled @ head["weight"].T + head["bias"]).tolist())
"""


def logits_of(out: str) -> Any:
    import torch

    return torch.tensor(json.loads(out.split("LOGITS", 1)[1]))


def test_the_adapters_copy_loads_by_its_readme(finished: Any, bert: Path, tmp_path: Path) -> None:
    to = tmp_path / "new" / "out"
    answer = export(finished, to)
    assert (answer.code, answer.err) == (0, "")
    assert {p.name for p in to.iterdir()} == RUN | ADAPTER
    for name in ADAPTER:
        assert (to / name).read_bytes() == (finished.folder / "adapter" / name).read_bytes()
    shown = "\nimport sys; assert 'dpft' not in sys.modules; print(type(encoder).__name__)"
    assert "PeftModel" in python(snippet(to, bert=bert) + shown)
    readme = (to / "README.md").read_text()
    made = json.loads((to / "privacy.json").read_text())
    for part in (f"delta {made['delta']:g}", "each note", "rank = 2", "folder:bert", "bad, good", "16 tokens"):
        assert part in readme
    assert "NOT PRIVATE" not in readme + answer.out
    assert stat.S_IMODE(to.stat().st_mode) == 0o755


@pytest.mark.parametrize("of", ["the run", "its adapter", "an adapter elsewhere"])
def test_merged_is_one_plain_model_with_the_same_logits(of: str, finished: Any, bert: Path, tmp_path: Path) -> None:
    """The README's snippet runs without dpft and peft."""
    import torch

    source = finished.folder if of == "the run" else finished.folder / "adapter"
    if of == "an adapter elsewhere":
        source = shutil.copytree(source, tmp_path / "mine")
    to = tmp_path / "merged"
    answer = export(finished, to, "--merge", "--base", str(bert), source=source)
    assert (answer.code, answer.err) == (0, "")
    found = logits_of(python(snippet(to) + SHOW))
    torch.testing.assert_close(found, ours(finished.folder / "adapter", bert), rtol=1e-5, atol=1e-5)
    assert found.abs().max() > 0
    names = {p.name for p in to.iterdir()}
    assert names >= {"config.json", "model.safetensors", "head.safetensors", "tokenizer.json", "README.md"}
    assert ("privacy.json" in names) == (of != "an adapter elsewhere")
    assert not names & {"adapter_config.json", "adapter_model.safetensors", "private"}
    config = json.loads((to / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    if of == "an adapter elsewhere":
        assert "no statement" in (to / "README.md").read_text()


@pytest.mark.parametrize(
    "overrides", [("model.pooling=cls",), ("model.pooling=last",), ("model.feature_norm=3.5",)], ids=str
)
def test_pooling_and_norm_are_in_the_snippet(
    overrides: tuple[str, ...], place: Any, bert: Path, tmp_path: Path
) -> None:
    import torch

    sets = [part for o in overrides for part in ("--set", o)]
    assert place.dpft("run", "tiny.toml", *sets).code == 0
    assert place.dpft("export", "runs/tiny", "--to", str(tmp_path / "m"), "--merge", "--base", str(bert)).code == 0
    found = logits_of(python(snippet(tmp_path / "m") + SHOW))
    torch.testing.assert_close(found, ours(place.run / "adapter", bert), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [(), ("--merge",)], ids=["adapter", "merged"])
def test_nothing_private_and_no_path_leaves(
    options: tuple[str, ...], finished: Any, bert: Path, tmp_path: Path
) -> None:
    """F2, F3: no figure of private/, no record, and no folder of this machine."""
    to = tmp_path / "out"
    assert export(finished, to, *options, *(("--base", str(bert)) if options else ())).code == 0
    for path in to.rglob("*"):
        content = path.read_bytes()
        assert b"zyxprivate" not in content
        for folder in (finished.place.folder, bert.parent, tmp_path):
            assert str(folder).encode() not in content, path


@pytest.mark.parametrize("options", [(), ("--merge",)], ids=["adapter", "merged"])
def test_what_is_not_private_says_so(options: tuple[str, ...], finished: Any, bert: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    made = json.loads((run / "privacy.json").read_text())
    made |= {"private": False, "noise_source": "INSECURE seeded generator"}
    made["epsilon"]["upper"] = "inf"
    (run / "privacy.json").write_text(json.dumps(made))
    to = tmp_path / "out"
    answer = export(finished, to, *options, *(("--base", str(bert)) if options else ()), source=run)
    assert answer.code == 0
    assert "NOT PRIVATE: INSECURE seeded generator" in answer.out
    assert (to / "README.md").read_text().split("\n")[2].startswith("**NOT PRIVATE: INSECURE seeded generator.")


def damaged(run: Path, name: str, text: str = "{}") -> None:
    (run / name).write_text(text)


MISTAKES: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "no such folder": (shutil.rmtree, (), "Expected a finished run"),
    "unfinished": (lambda run: (run / "privacy.json").unlink(), (), "--resume"),
    "stopped early": (lambda run: (shutil.rmtree(run / "adapter"), (run / "privacy.json").unlink()), (), "--resume"),
    "no adapter": (lambda run: shutil.rmtree(run / "adapter"), (), "finished run"),
    "a file is gone": (lambda run: (run / "adapter" / "head.safetensors").unlink(), (), "head.safetensors"),
    "an empty description": (lambda run: damaged(run, "adapter/dpft.json"), (), "damaged"),
    "an empty statement": (lambda run: damaged(run, "privacy.json"), (), "damaged"),
    "base not given": (lambda run: None, ("--merge",), "--base"),
    "base not there": (lambda run: None, ("--merge", "--base", "./nowhere"), "nowhere"),
    "damaged weights": (
        lambda run: damaged(run, "adapter/adapter_model.safetensors"), ("--merge", "--base", "bert"), "damaged"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "options", "names"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_sentence_and_leave_nothing(
    change: Any, options: tuple[str, ...], names: str, finished: Any, tmp_path: Path
) -> None:
    """F4."""
    run = shutil.copytree(finished.folder, tmp_path / "run")
    change(run)
    home = tmp_path / "out"
    home.mkdir()
    answer = export(finished, home / "new", *options, source=run)
    assert answer.code == 2, answer
    assert names in answer.err
    assert answer.err.count("\n") == 1
    assert list(home.iterdir()) == []


def test_a_folder_in_use_is_left_alone(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for to in (tmp_path, tmp_path / "mine.txt"):
        answer = export(finished, to)
        assert answer.code == 2
        assert "--to" in answer.err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert export(finished, tmp_path / "empty").code == 0


def test_an_interrupted_export_leaves_nothing(
    finished: Any, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpft.export as module

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sync_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.export(finished.folder, tmp_path / "out" / "new", merged=True, base=str(bert))
    assert list((tmp_path / "out").iterdir()) == []


# Two fresh processes a method: by default one of each kind (peft's own type, ours merged, ours without a merged form).
DEFAULT = ("lora", "full", "adapter")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in METHODS]
)
def test_every_method_is_exported_and_loads_by_its_readme(name: str, finished: Any, bert: Path, tmp_path: Path) -> None:
    """Also where the classifier left out a module that a fresh base has again."""
    import torch

    import dpft
    from dpft.adapter import save_model
    from dpft.models.classifier import TextClassifier
    from dpft.models.source import load_encoder, resolve

    method: Any = METHODS[name](**({"tokens": (7, 9)} if name == "tokens" else {}))
    model = TextClassifier(load_encoder(resolve(str(bert))), 2, "mean", None)
    dpft.attach(model, method, train=("head",))
    torch.manual_seed(0)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p) * p.requires_grad)
    adapter = tmp_path / "adapter"
    save_model(model, method, adapter, base="folder:bert", revision=None, labels=("bad", "good"))
    expected = ours(adapter, bert)

    assert export(finished, tmp_path / "a", source=adapter).code == 0
    code = snippet(tmp_path / "a", bert=bert)
    assert ("import dpft" in code) == (name not in ("lora", "ia3", "norms"))
    torch.testing.assert_close(
        logits_of(python(code + BY_HAND.format(bert, tmp_path / "a"))), expected, rtol=1e-5, atol=1e-5
    )

    answer = export(finished, tmp_path / "m", "--merge", "--base", str(bert), source=adapter)
    if not method.merges:
        assert answer.code == 2
        assert "--merge" in answer.err
        assert not (tmp_path / "m").exists()
        return
    found = logits_of(python("import warnings; warnings.simplefilter('error')\n" + snippet(tmp_path / "m") + SHOW))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
