"""A run with ``[cache]``, and ``dpft cache``: where the frozen outputs lie, who may look, when they go."""

from __future__ import annotations

import json
import shutil
import stat
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from dpft_accounting import Ledger

from dpft.cache.folder import META, RECORDS, ROWS
from dpft.report.write import write_report

LEAVE_LORA = ("method.rank=", "method.targets=")
METHODS = {
    "head": ("method.name=head",),
    "last-k": ("method.name=last-k", "method.k=1"),
    "lst": ("method.name=lst", "method.reduction=4"),
}
KEPT = ("privacy.steps=4", "cache.keep=true")


@pytest.fixture(scope="session")
def deep(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with a second block, so that the last one has a frozen one before it."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("model") / "deep"
    shutil.copytree(bert, folder)
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(bert, num_hidden_layers=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def here(place: Any, deep: Path) -> Any:
    (place.folder / "deep").symlink_to(deep)
    return place


def sets(name: str, *fields: str) -> list[str]:
    given = ("model.source=./deep", *LEAVE_LORA, *METHODS[name], *fields)
    return [part for field in given for part in ("--set", field)]


def cache(place: Any) -> Path:
    return place.run / "private" / "cache"


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As SIGTERM does it."""
    import dpft.cli.run as cli

    class Stop(list[int]):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked >= steps

    monkeypatch.setattr(cli, "_stop_signal", lambda: nullcontext(Stop()))


@pytest.mark.parametrize("name", METHODS)
def test_stopped_resumed_and_deleted_at_the_end(name: str, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner's alone while it is there; opened, not made, on resuming; gone when the run has finished."""
    fields = sets(name, "privacy.steps=4", 'cache.dtype="float32"')
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        answer = here.dpft("run", "tiny.toml", *fields)
    assert answer.code == 1, answer.err
    assert "computing once what stays frozen" in answer.out
    assert stat.S_IMODE(cache(here).stat().st_mode) == 0o700
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in cache(here).iterdir()}
    assert modes == dict.fromkeys((META, RECORDS, ROWS), 0o600)
    made = (cache(here) / ROWS).stat().st_mtime_ns
    seen: list[int] = []

    def report(folder: Path) -> Any:  # the last thing before the cache goes
        seen.append((cache(here) / ROWS).stat().st_mtime_ns)
        return write_report(folder)

    with monkeypatch.context() as patch:
        patch.setattr("dpft.run.write_report", report)
        answer = here.dpft("run", "tiny.toml", "--resume", *fields)
    assert answer.code == 0, answer.err
    assert seen == [made]
    assert "computing once" not in answer.out
    assert not cache(here).exists()
    ledger = Ledger.read(here.run / "ledger.jsonl").runs()["train"]
    assert (ledger.reserved, ledger.committed) == (4, 4)
    assert json.loads((here.run / "privacy.json").read_text())["steps_charged"] == 4


def test_the_model_that_leaves_is_whole(here: Any, deep: Path) -> None:
    """The taps are off, and the adapter answers texts that were never cached."""
    import dpft

    assert here.dpft("run", "tiny.toml", *sets("last-k", "privacy.steps=2")).code == 0
    assert json.loads((here.run / "private" / "evaluation.json").read_text())["records"] > 0
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        logits = dpft.load(here.run / "adapter", base=str(deep))(ids, torch.ones_like(ids))
    assert logits.isfinite().all()
    assert logits.any()


def test_kept_shown_and_deleted(here: Any) -> None:
    """``dpft cache`` finds it from the run's folder and from the folder of runs; nothing of it is public."""
    assert here.dpft("run", "tiny.toml", *sets("head", *KEPT)).code == 0
    assert {p.name for p in cache(here).iterdir()} == {META, RECORDS, ROWS}
    others = [p for p in here.run.rglob("*") if p.is_file() and "private" not in p.parts]
    assert others
    assert all((cache(here) / ROWS).read_bytes()[:64] not in p.read_bytes() for p in others)
    for path in ("runs", "runs/tiny"):
        answer = here.dpft("cache", "show", path, "--json")
        (said,) = json.loads(answer.out)
        assert (said["whole"], said["width"], said["dtype"], said["points"]) == (True, 16, "float32", ["features"])
        assert 0 < said["records"] == said["tokens"] < 50
    assert "features" in here.dpft("cache", "show", "runs").out
    answer = here.dpft("cache", "delete", "runs")
    assert answer.code == 0, answer.err
    assert "1 deleted" in answer.out
    assert not cache(here).exists()
    assert (here.run / "private" / "steps.jsonl").exists()
    assert "no cache in runs" in here.dpft("cache", "delete", "runs").out
    assert here.dpft("cache", "show", "absent").code == 2


def test_two_runs_share_one(here: Any) -> None:
    """Seeds and noise differ, what is frozen does not; in a run's own public part it is refused."""
    fields = sets("last-k", "privacy.steps=1", "cache.keep=true", "cache.folder=shared")
    for seed, (out, computed) in enumerate((("one", True), ("two", False))):
        answer = here.dpft("run", "tiny.toml", "--out", out, *fields, "--set", f"seed={seed}")
        assert answer.code == 0, answer.err
        assert ("computing once" in answer.out) == computed
        assert not (here.folder / out / "private" / "cache").exists()
    assert '"whole": true' in here.dpft("cache", "show", "shared", "--json").out
    answer = here.dpft("run", "tiny.toml", "--out", "three", *fields, "--set", "cache.folder=three/adapter")
    assert (answer.code, "lies in three, which is made to be handed on" in answer.err) == (2, True)
    assert not (here.folder / "three" / "ledger.jsonl").exists()
    assert "1 deleted" in here.dpft("cache", "delete", "shared").out


def test_one_bad_record_ends_no_run(here: Any, deep: Path) -> None:
    """A9, F2: what the frozen model makes of one record is not finite; the run says nothing and finishes."""
    from transformers import AutoTokenizer, BertModel

    folder = here.folder / "spoilt"
    shutil.copytree(deep, folder)
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[AutoTokenizer.from_pretrained(folder)("dull")["input_ids"][1]] = 1e30
    model.save_pretrained(folder)
    path = here.folder / "records.csv"
    path.write_text(path.read_text() + "a dull plot,bad\n")
    fields = [*sets("head", "privacy.steps=2", "cache.keep=true", "data.heldout=0.0"), "--set", "model.source=./spoilt"]
    answer = here.dpft("run", "tiny.toml", "--out", "other", *fields)
    assert (answer.code, answer.err) == (0, "")
    rows = torch.from_file(str(here.folder / "other/private/cache" / ROWS), size=52 * 16, dtype=torch.float32)
    assert (~rows.view(52, 16).isfinite().all(dim=1)).nonzero().flatten().tolist() == [50]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("model.source=./deep", "cache.keep=false"), "so there is nothing to cache. Choose head, last-k or lst"),
        ((*LEAVE_LORA, "method.name=last-k", "method.k=1", "cache.keep=false"), "leave [cache] out"),
        ((*LEAVE_LORA, "method.name=head", "cache.dtype=float16", "model.dropout=true"), "model.dropout"),
    ],
)
def test_refused_before_ledger_and_records(fields: tuple[str, ...], words: str, here: Any) -> None:
    """LoRA below the blocks; the only block of a model; dropout. The records are not there: reading would say so."""
    (here.folder / "records.csv").unlink()
    answer = here.dpft("run", "tiny.toml", *(part for field in fields for part in ("--set", field)))
    assert answer.code == 2
    assert words in answer.err, answer.err
    assert answer.err.count("\n") == 1
    assert not (here.run / "ledger.jsonl").exists()
    assert not cache(here).exists()
