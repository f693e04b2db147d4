"""Runs on images: scikit-learn's digits and files of one's own, from the recipe to what leaves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpft.errors import InputError

CONFIG = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

RECIPE = """\
name = "tiny"
seed = 3
[data]
source = "digits"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
heldout = 0.5
mean = [0.25]
unit = "image"
[model]
source = "config:vit.json"
pooling = "mean"
[method]
name = "full"
[privacy]
noise_multiplier = 1.0
delta = 1e-5
sample_rate = 0.05
expected_batch = 45
steps = 6
[optimizer]
lr = 1e-3
[train]
token_budget = 100
precision = "float32"
checkpoint_every = 3
"""


@pytest.fixture
def images(place: Any) -> Any:
    """The working folder with a recipe for digits and a ViT that is a configuration alone."""
    (place.folder / "tiny.toml").write_text(RECIPE)
    (place.folder / "vit.json").write_text(json.dumps(CONFIG))
    return place


def run(place: Any, *overrides: str, resume: bool = False) -> Any:
    sets = [part for o in overrides for part in ("--set", o)]
    return place.dpft("run", "tiny.toml", *sets, *(["--resume"] if resume else []))


def finish(place: Any, *overrides: str) -> Path:
    answer = run(place, *overrides)
    assert answer.code == 0, answer.err
    adapter: Path = place.run / "adapter"
    return adapter


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every model that a run builds, to be compared with what it leaves."""
    import dpft.run as job

    kept: list[Any] = []
    build = job.build_model

    def noting(*arguments: Any) -> Any:
        kept.append(build(*arguments))
        return kept[-1]

    monkeypatch.setattr(job, "build_model", noting)
    return kept


def pictures(shape: tuple[int, int, int] = (1, 8, 8), peak: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, peak + 1, (3, *shape), generator=generator).float()


@torch.no_grad()
def logits(model: Any, raw: Tensor, mean: float = 0.25, std: float = 0.5, peak: int = 16) -> Tensor:
    found: Tensor = model(pixel_values=(raw / peak - mean) / std)
    return found


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_a_model_without_weights_trains_and_comes_back(images: Any, models: Any, method: str) -> None:
    """Its frozen part, if any, is drawn again from configuration and seed; the file itself may be gone."""
    import dpft

    adapter = finish(images, f"method.name={method}")
    trained = models[0][0].eval()
    (images.folder / "vit.json").unlink()
    loaded = dpft.load(adapter)
    assert type(loaded).__name__ == "ImageClassifier"
    assert torch.equal(logits(loaded, pictures()), logits(trained, pictures()))
    assert logits(loaded, pictures()).abs().max() > 0
    named = dict(loaded.named_parameters())
    trains = {n for n, p in named.items() if p.requires_grad}
    assert (trains == set(named)) == (method == "full")
    facts = json.loads((images.run / "plan.json").read_text())
    assert facts["model"] == "config:vit.json"
    assert facts["dataset"] == "digits@train,heldout=0.5"
    meta = json.loads((adapter / "dpft.json").read_text())
    assert meta["images"] == {"shape": [1, 8, 8], "peak": 16, "mean": [0.25], "std": [0.5]}


def test_a_frozen_part_that_is_drawn_otherwise_is_refused(images: Any) -> None:
    """Trained factors beside other frozen weights would compute something else in silence."""
    import dpft

    adapter = finish(images, "method.name=lora")
    meta = json.loads((adapter / "dpft.json").read_text())
    meta["drawn"]["seed"] += 1
    (adapter / "dpft.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="could not be drawn again"):
        dpft.load(adapter)


def test_the_seed_draws_the_initial_weights_and_leaves_the_process_alone() -> None:
    from dpft.models.drawn import Drawn

    state = torch.get_rng_state()
    one, same, other = (Drawn(CONFIG, seed).build().state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "layers.0.mlp.fc1.weight"
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "missing or not JSON"),
        ("[]", "model_type"),
        ('{"image_size": 8}', "model_type"),
        (json.dumps({**CONFIG, "hiden_size": 3}), "hiden_size"),
        (json.dumps({**CONFIG, "model_type": "vitt"}), "can't be used"),
        (json.dumps({"model_type": "bert", "num_hidden_layers": 1}), "reads texts"),
    ],
)
def test_a_configuration_that_is_none_is_refused(images: Any, config: str, said: str) -> None:
    (images.folder / "vit.json").write_text(config)
    answer = run(images)
    assert answer.code == 2
    assert said in " ".join(answer.err.split())
    assert not (images.run / "ledger.jsonl").exists()


def test_records_and_model_of_two_kinds_are_refused(images: Any) -> None:
    from transformers import ViTConfig, ViTModel

    answer = run(images, "model.source=./bert")
    assert answer.code == 2
    assert "describes images" in " ".join(answer.err.split())
    ViTModel(ViTConfig(**CONFIG)).save_pretrained(images.folder / "vit")
    answer = images.dpft(
        "run", "tiny.toml", "--out", "other", "--set", "data.source=csv", "--set", "data.path=records.csv",
        "--set", "data.mean=", "--set", "model.source=./vit",
    )  # fmt: skip
    assert answer.code == 2
    assert "describes texts" in " ".join(answer.err.split())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_of_images_resumes(images: Any, models: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    import dpft
    import dpft.run as job

    real, steps = job.set_rates, iter(range(100))

    def failing(*arguments: Any) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job, "set_rates", failing)
        assert run(images, f"method.name={method}").code != 0
    assert not (images.run / "adapter").exists()
    answer = run(images, f"method.name={method}", resume=True)
    assert answer.code == 0, answer.err
    assert "checkpoint at 3 charged steps" in " ".join(answer.out.split())
    assert json.loads((images.run / "privacy.json").read_text())["steps_charged"] == 6
    loaded = dpft.load(images.run / "adapter")
    assert torch.equal(logits(loaded, pictures()), logits(models[-1][0].eval(), pictures()))


def test_other_images_on_resume_are_refused(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint is of the images: one pixel more is another set."""
    import dpft.run as job
    from dpft.data import ImageRecord

    finish(images)
    (images.run / "privacy.json").unlink()  # as if it had stopped before its end
    real = job.task_of

    def another(*arguments: Any) -> Any:
        task = real(*arguments)
        data = task.load()
        first = data.train[0]
        changed = ImageRecord(first.content[:-1] + b"\1", first.label)
        object.__setattr__(data, "train", (changed, *data.train[1:]))
        task.load = lambda: data
        return task

    monkeypatch.setattr(job, "task_of", another)
    answer = run(images, resume=True)
    assert answer.code == 3
    assert "records changed" in " ".join(answer.err.split())


@pytest.mark.parametrize(("method", "pooling"), [("full", "mean"), ("lora", "cls")])
def test_what_is_exported_computes_the_same_logits(images: Any, tmp_path: Path, method: str, pooling: str) -> None:
    """The merged model by the README's own code, in a process that never hears of dpft."""
    import dpft

    adapter = finish(images, f"method.name={method}", f"model.pooling={pooling}", "model.feature_norm=3.0")
    assert images.dpft("export", str(images.run), "--to", str(tmp_path / "a")).code == 0
    answer = images.dpft("export", str(images.run), "--to", str(tmp_path / "m"), "--merge")
    assert answer.code == 0, answer.err
    expected = logits(dpft.load(adapter), pictures())
    assert torch.equal(logits(dpft.load(tmp_path / "a"), pictures()), expected)

    readme = (tmp_path / "m" / "README.md").read_text()
    assert readme.startswith("# An image classifier on vit.json")
    assert "8 x 8 pixels and 1 channel, divided by 16, less 0.25, divided by 0.5." in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    given, made = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(given, pictures().numpy())
    code = (
        "import sys, warnings, numpy; warnings.simplefilter('error')\n"
        + code.replace("path/to/this/folder", str(tmp_path / "m"))
        + f"numpy.save({str(made)!r}, logits(torch.from_numpy(numpy.load({str(given)!r}))))\n"
        "assert 'dpft' not in sys.modules and encoder.config.id2label[9] == '9'\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    torch.testing.assert_close(torch.from_numpy(np.load(made)), expected, rtol=1e-5, atol=1e-5)
    assert "dpft.load" in (tmp_path / "a" / "README.md").read_text()
    assert "from_pretrained" not in (tmp_path / "a" / "README.md").read_text()  # there is no base to load


def test_the_report_of_images_is_rebuilt_identically(images: Any) -> None:
    finish(images, "evaluate.public=true")
    names = ("privacy.json", "report.md", "report.html")
    before = [(images.run / name).read_bytes() for name in names]
    for name in names:
        (images.run / name).unlink()
    assert images.dpft("report", str(images.run)).code == 0
    assert [(images.run / name).read_bytes() for name in names] == before
    assert "one image added or removed" in (images.run / "report.md").read_text()


def test_a_damaged_description_of_images_is_refused(images: Any, tmp_path: Path) -> None:
    adapter = finish(images)
    meta = json.loads((adapter / "dpft.json").read_text())
    for name, value in (("images", {"shape": [1]}), ("images", None), ("drawn", {"seed": 0}), ("drawn", 3)):
        (adapter / "dpft.json").write_text(json.dumps({**meta, name: value}))
        answer = images.dpft("export", str(images.run), "--to", str(tmp_path / "x"), "--merge")
        assert answer.code == 2, (name, value)
        assert "dpft.json" in answer.err or "configuration" in answer.err
        assert not (tmp_path / "x").exists()


def tiny(kind: str, folder: Path, bert: Path) -> None:
    """A saved model of the family with random weights, tokenizer included."""
    import transformers as hf

    torch.manual_seed(0)
    if kind == "vit":
        hf.ViTModel(hf.ViTConfig(**{**CONFIG, "num_channels": 3})).save_pretrained(folder)
        return
    shutil.copytree(bert, folder)
    if kind == "deberta-v2":
        (folder / "model.safetensors").unlink()
        hf.DebertaV2Model(
            hf.DebertaV2Config(
                vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=32, relative_attention=True, position_buckets=8, share_att_key=True,
                pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
            )
        ).save_pretrained(folder)  # fmt: skip


def files(folder: Path, kind: str) -> None:
    """Thirty records of the columns that the recipe names, three classes at most."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = {"bert": ["sentence,label"], "deberta-v2": ["premise,hypothesis,label"], "vit": ["img,label"]}[kind]
    for i in range(30):
        if kind == "vit":
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            lines.append(f"{i}.png,{i % 10}")
        else:
            words = ",".join(f"the film {i % 7} was good" for _ in range(lines[0].count(",")))
            lines.append(f"{words},{i % 2}")
    (folder / "own.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [("bert-base", "bert", "adapter"), ("deberta-v3-base", "deberta-v2", "lora"), ("vit-base", "vit", "lora")],
)
def test_the_backbones_recipes_train(place: Any, bert: Path, name: str, kind: str, method: str) -> None:
    """Each as it stands, with a tiny model of its family, records of one's own and two steps."""
    import dpft

    recipe = Path(__file__).parents[2] / "recipes" / "backbones" / f"{name}.toml"
    tiny(kind, place.folder / "tiny-model", bert)
    files(place.folder, kind)
    changes = (
        "data.source=csv", "data.path=own.csv", "data.config=", "data.eval_split=", "data.heldout=0.2",
        *(["data.max_length=16"] if kind != "vit" else []),
        "model.source=./tiny-model", "privacy.epsilon=", "privacy.noise_multiplier=1.0", "privacy.examples=",
        "privacy.sample_rate=0.3", "privacy.expected_batch=8", "privacy.epochs=", "privacy.steps=2",
        "evaluate.public=false",
    )  # fmt: skip
    sets = [part for change in changes for part in ("--set", change)]
    answer = place.dpft("run", str(recipe), *sets, "--out", "out")
    assert answer.code == 0, answer.err
    loaded = dpft.load(place.folder / "out" / "adapter", base=str(place.folder / "tiny-model"))
    assert loaded.config.model_type == kind
    meta = json.loads((place.folder / "out" / "adapter" / "dpft.json").read_text())
    assert meta["method"]["name"] == method
    assert meta["pooling"] == "cls"
    assert any(p.abs().max() > 0 for n, p in loaded.named_parameters() if n == "head.weight")
