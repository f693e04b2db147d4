"""Interruptions: what was charged stays charged, the noise is fresh, and only the same run can go on."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from dpft_accounting import Ledger, LedgerError, verify
from safetensors.torch import load_file


def stopped(place: Any, monkeypatch: pytest.MonkeyPatch, after: int = 4) -> Any:
    """A run that was asked to stop after ``after`` steps, as SIGTERM does it."""
    import dpft.cli.run as cli

    class Stop(list[int]):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked >= after

    from contextlib import nullcontext

    with monkeypatch.context() as patch:
        patch.setattr(cli, "_stop_signal", lambda: nullcontext(Stop()))
        answer = place.dpft("run", "tiny.toml")
    assert answer.code == 1
    assert "--resume" in answer.err
    return answer


def charged(place: Any) -> int:
    return Ledger.read(place.run / "ledger.jsonl").runs()["train"].reserved


def test_sigterm_stops_cleanly_and_resume_finishes(place: Any) -> None:
    """G4, E5: exit code 1, a checkpoint, nothing released; then the rest of the plan and no more."""
    process = place.start("run", "tiny.toml", "--set", "privacy.steps=200", "--set", "train.checkpoint_every=200")
    ledger = place.run / "ledger.jsonl"
    deadline = time.monotonic() + 60
    while not (ledger.exists() and ledger.read_bytes().count(b"\n") > 12):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    at = int(re.search(r"Stopped after step (\d+) of 200", err).group(1))  # type: ignore[union-attr]
    assert verify(ledger).reserved == at == verify(ledger).committed
    assert "Traceback" not in out + err
    assert list((place.run / "private").glob("checkpoint-*.safetensors"))
    assert not (place.run / "adapter").exists()
    assert not (place.run / "privacy.json").exists()
    answer = place.dpft(
        "run", "tiny.toml", "--set", "privacy.steps=200", "--set", "train.checkpoint_every=200", "--resume"
    )
    assert answer.code == 0, answer.err
    assert f"checkpoint at {at} charged steps" in " ".join(answer.out.split())
    assert verify(ledger).reserved == 200
    assert json.loads((place.run / "privacy.json").read_text())["steps_charged"] == 200


def test_what_is_resumed_must_be_the_same_recipe(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """E2: another sigma, clip, rate or number of steps is another promise."""
    stopped(place, monkeypatch)
    before = {p: p.read_bytes() for p in place.run.rglob("*") if p.is_file()}
    for change in (
        "privacy.noise_multiplier=0.9",
        "privacy.clip=2.0",
        "privacy.sample_rate=0.2",
        "privacy.steps=9",
        'privacy.clipping="auto-s"',
    ):
        answer = place.dpft("run", "tiny.toml", "--resume", "--set", change)
        assert answer.code == 3, change
        assert "recipe differs" in answer.err
    assert {p: p.read_bytes() for p in place.run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.5},
        {"steps": 80},
        {"sample_rate": 0.1},
        {"delta": 1e-4},
        {"clip": 2.0},
        {"clipping": "auto-s"},
    ],
)
def test_an_edited_plan_is_not_followed(place: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, float]) -> None:
    """E2, B3: plan.json stands in the folder, where anybody can edit it."""
    stopped(place, monkeypatch)
    facts = json.loads((place.run / "plan.json").read_text())
    facts["plan"] |= change
    (place.run / "plan.json").write_text(json.dumps(facts))
    answer = place.dpft("run", "tiny.toml", "--resume")
    assert answer.code == 3, answer.err
    assert charged(place) == 4


@pytest.mark.parametrize("how", ["one more", "one changed"])
def test_changed_records_are_refused(place: Any, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """E2: the ledger speaks of other records; the message does not say which."""
    stopped(place, monkeypatch)
    if how == "one more":
        place.records(52)
    else:
        path = place.folder / "records.csv"
        path.write_text(path.read_text().replace("zyxprivate", "zyxchanged"))
    answer = place.dpft("run", "tiny.toml", "--resume")
    assert answer.code == 3
    assert "records changed" in answer.err
    assert "zyx" not in answer.err
    assert charged(place) == 4
    place.records(50)
    assert place.dpft("run", "tiny.toml", "--resume").code == 0  # a refusal does no harm


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """G4."""
    stopped(place, monkeypatch)  # checkpoints at 3 and at 4
    private = place.run / "private"
    newest = max((0, 1), key=lambda i: json.loads((private / f"checkpoint-{i}.json").read_text())["steps_charged"])
    path = private / f"checkpoint-{newest}.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    answer = place.dpft("run", "tiny.toml", "--resume")
    assert answer.code == 0, answer.err
    assert "damaged" in " ".join(answer.out.split())
    assert "checkpoint at 3 charged steps" in " ".join(answer.out.split())
    assert charged(place) == 8  # the fourth step stays charged and is not repeated


def test_an_average_and_a_scale_go_on_after_an_interruption(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """E2, F5: what is released is the average that stands in the last checkpoint, not the values beside it."""
    choices = ('average = "tail"', "average_tail = 0.75", 'scale = "privatised"', "scale_every = 2")
    recipe = place.folder / "tiny.toml"
    recipe.write_text(recipe.read_text().replace("[train]", "\n".join([*choices, "[train]"])))
    stopped(place, monkeypatch)
    assert int(newest(place)["extra.scale.seen"]) == 4
    assert place.dpft("run", "tiny.toml", "--resume").code == 0
    kept = newest(place)
    assert int(kept["extra.average_seen"]) == 6
    assert int(kept["extra.scale.seen"]) == 8
    (released,) = (load_file(p)["weight"] for p in (place.run / "adapter").glob("head*.safetensors"))
    assert torch.equal(released, kept["extra.average.head.weight"])
    assert not torch.equal(released, kept["param.head.weight"])
    made = json.loads((place.run / "privacy.json").read_text())
    assert "averaging costs no privacy" in made["post_processing"][1]
    assert "last 75 % of the steps" in (place.run / "report.md").read_text()


def newest(place: Any) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint."""
    private = place.run / "private"
    at = max((0, 1), key=lambda i: json.loads((private / f"checkpoint-{i}.json").read_text())["steps_charged"])
    return load_file(private / f"checkpoint-{at}.safetensors")


def test_without_any_sound_checkpoint_a_resumed_run_says_where_it_starts(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4: silence would pass untrained weights for a trained model."""
    stopped(place, monkeypatch)
    for path in (place.run / "private").glob("checkpoint-*.safetensors"):
        path.write_bytes(b"damaged")
    answer = place.dpft("run", "tiny.toml", "--resume")
    if answer.code == 0:
        assert "damaged" in " ".join(answer.out.split())
        assert "checkpoint at 0" in " ".join(answer.out.split())
    assert charged(place) <= 8


def test_untrained_weights_are_not_released_as_trained(place: Any, finished: Any) -> None:
    """A12, G4: every step is charged, and what they made is lost."""
    shutil.copytree(finished.folder, place.run)
    shutil.rmtree(place.run / "adapter")
    (place.run / "privacy.json").unlink()
    for path in (place.run / "private").glob("checkpoint-*"):
        path.unlink()
    answer = place.dpft("run", "tiny.toml", "--resume", "--set", "evaluate.public=true")
    assert answer.code == 1
    assert "nothing trained" in answer.err
    assert not (place.run / "adapter").exists()


def test_a_second_process_on_the_folder_meets_the_lock(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """G4: flock belongs to the open file, so that one process can play both."""
    stopped(place, monkeypatch)
    found = Ledger.read(place.run / "ledger.jsonl")
    with Ledger.open(place.run / "ledger.jsonl", found.dataset_id, found.unit, found.budget):
        answer = place.dpft("run", "tiny.toml", "--resume")
        assert answer.code == 3
        assert "Another process" in answer.err
    with pytest.raises(LedgerError):
        Ledger.open(place.run / "ledger.jsonl", "other", found.unit, found.budget)


def test_a_folder_in_use_is_not_written_over(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """E5: starting again in the same folder would forget what was spent."""
    stopped(place, monkeypatch)
    before = (place.run / "ledger.jsonl").read_bytes()
    answer = place.dpft("run", "tiny.toml")
    assert answer.code == 2
    assert "not empty" in answer.err
    assert (place.run / "ledger.jsonl").read_bytes() == before


def test_there_must_be_something_to_resume(place: Any) -> None:
    """F4."""
    answer = place.dpft("run", "tiny.toml", "--resume")
    assert answer.code == 2
    assert "run.toml is missing" in answer.err
    assert not place.run.exists()


def test_a_finished_run_is_not_resumed(place: Any, finished: Any) -> None:
    """E5."""
    shutil.copytree(finished.folder, place.run)
    answer = place.dpft("run", "tiny.toml", "--resume", "--set", "evaluate.public=true")
    assert answer.code == 2
    assert "finished" in answer.err


@pytest.mark.parametrize("left", ["before the adapter", "adapter half written", "before the report"])
def test_a_crash_after_the_last_step_can_be_resumed(place: Any, finished: Any, left: str) -> None:
    """G4: no step is left, and the release is made whole, once."""
    shutil.copytree(finished.folder, place.run)
    expected = {p.name: p.read_bytes() for p in finished.public_files() if "adapter" in p.parts}
    for name in ("privacy.json", "report.md", "report.html"):
        (place.run / name).unlink()
    if left == "before the adapter":
        shutil.rmtree(place.run / "adapter")
        (place.run / "metrics.jsonl").unlink()
    elif left == "adapter half written":
        (place.run / "adapter").rename(place.run / "adapter.part")
        (place.run / "adapter.part" / "head.safetensors").write_bytes(b"half")
    answer = place.dpft("run", "tiny.toml", "--resume", "--set", "evaluate.public=true")
    assert answer.code == 0, answer.err
    assert charged(place) == 8
    assert {p.name: p.read_bytes() for p in (place.run / "adapter").iterdir()} == expected
    assert not (place.run / "adapter.part").exists()
    names = [json.loads(line)["name"] for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    assert len(names) == len(set(names))  # each result stands there once
    for name in ("privacy.json", "report.md"):
        assert (place.run / name).read_bytes() == (finished.folder / name).read_bytes()


def test_a_crash_before_the_first_step_can_be_resumed(place: Any) -> None:
    """G4: the records are missing at the first try; run.toml, plan and ledger are already there."""
    records = place.folder / "records.csv"
    away: Path = records.rename(place.folder / "away.csv")
    answer = place.dpft("run", "tiny.toml")
    assert answer.code == 2
    away.rename(records)
    answer = place.dpft("run", "tiny.toml", "--resume")
    assert answer.code == 0, answer.err
    assert charged(place) == 8
