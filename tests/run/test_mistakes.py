"""What only a run can find out: wrong names in the model, faults in the records, trouble half way."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_a_misspelt_target_names_its_nearest_and_can_be_corrected(place: Any) -> None:
    """F4: nothing was charged, so the same folder serves for the next try."""
    answer = place.dpft("run", "tiny.toml", "--set", 'method.targets=["qeury"]')
    assert answer.code == 2
    assert "method.targets" in answer.err
    assert "query" in answer.err
    assert answer.err.count("\n") == 1
    assert place.dpft("run", "tiny.toml").code == 0


@pytest.mark.parametrize("row", ["zyxprivate,neither", "zyxprivate,good,more", '"zyxprivate,good'])
def test_a_faulty_record_is_named_by_its_place_and_never_quoted(place: Any, row: str) -> None:
    """F2, I5: 3 such rows, and none of them reaches the terminal or a file."""
    path = place.folder / "records.csv"
    path.write_text(path.read_text() + row + "\n")
    answer = place.dpft("run", "tiny.toml")
    assert answer.code == 2
    assert "row 51" in answer.err
    assert "zyx" not in answer.out + answer.err
    assert all(b"zyx" not in p.read_bytes() for p in place.run.rglob("*") if p.is_file())


def test_an_error_while_training_shows_nothing_and_releases_nothing(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: libraries quote what they choke on."""
    import dpft.run as job
    from dpft.models.losses import LOSSES

    real = LOSSES["classification"]

    def choking(model: Any, batch: Any) -> Any:
        if len(batch["labels"]) and job_started:
            raise RuntimeError(f"can't handle {batch['input_ids'].tolist()} zyxprivate")
        return real(model, batch)

    job_started = []
    monkeypatch.setitem(LOSSES, "classification", choking)  # type: ignore[arg-type]
    monkeypatch.setattr(job, "Checkpoints", lambda folder, extra: (job_started.append(1), folder)[1])
    answer = place.dpft("run", "tiny.toml")
    assert answer.code == 1
    assert "RuntimeError" in answer.err
    assert "zyx" not in answer.out + answer.err
    assert "[[" not in answer.err
    assert not (place.run / "adapter").exists()
    assert not (place.run / "privacy.json").exists()


def test_an_exploding_learning_rate_ends_with_a_reason(place: Any) -> None:
    """G4: exit code 1, no adapter, and the step is charged."""
    answer = place.dpft(
        "run", "tiny.toml", "--set", "optimizer.lr=1e38", "--set", "privacy.clip=1000.0", "--set", "optimizer.name=sgd"
    )
    assert answer.code == 1
    assert "learning rate" in answer.err
    assert not (place.run / "adapter").exists()


def test_a_frozen_weight_that_changes_is_3_and_releases_nothing(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A11: after training, before the release."""
    import dpft.run as job

    real = job.set_rates

    def meddling(optimizer: Any, section: Any, step: int, steps: int) -> None:
        real(optimizer, section, step, steps)
        if step == 5:
            embeddings.weight.data.add_(1e-3)

    build = job.build_model

    def noting(*arguments: Any) -> Any:
        nonlocal embeddings
        model, method = build(*arguments)
        embeddings = model.encoder.embeddings.word_embeddings
        return model, method

    embeddings: Any = None
    monkeypatch.setattr(job, "build_model", noting)
    monkeypatch.setattr(job, "set_rates", meddling)
    answer = place.dpft("run", "tiny.toml")
    assert answer.code == 3
    assert "frozen" in answer.err
    assert not (place.run / "adapter").exists()
    assert not (place.run / "privacy.json").exists()


def test_set_reaches_the_run(place: Any) -> None:
    """F4: what is set is what run.toml says and what ran."""
    answer = place.dpft("run", "tiny.toml", "--set", "optimizer.lr=2e-3", "--set", "privacy.steps=3", "--out", "here")
    assert answer.code == 0, answer.err
    assert "lr = 0.002" in (place.folder / "here" / "run.toml").read_text()
    assert json.loads((place.folder / "here" / "privacy.json").read_text())["steps_charged"] == 3


def test_a_run_without_held_out_records_says_nothing_of_accuracy(place: Any) -> None:
    """F5."""
    answer = place.dpft("run", "tiny.toml", "--set", "data.heldout=0.0", "--set", "evaluate.public=true")
    assert answer.code == 0, answer.err
    assert "accuracy" not in answer.out


def test_text_of_the_recipe_is_escaped_in_the_page(place: Any) -> None:
    """I5: the unit and the file's name come from the recipe and stand in the report."""
    (place.folder / "records.csv").rename(place.folder / "<b onload=x>.csv")
    answer = place.dpft(
        "run", "tiny.toml", "--set", 'data.path="<b onload=x>.csv"', "--set", 'data.unit="<script>alert(1)</script>"'
    )
    assert answer.code == 0, answer.err
    for name in ("report.html", "report.md"):
        text = (place.run / name).read_text()
        assert "<script" not in text
        assert "<b onload" not in text
        assert "&lt;script&gt;" in text
