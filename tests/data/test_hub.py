"""The hub source, against a stand-in for the library: no test reaches a hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpft.config import DataSection, validate
from dpft.data import Record, hub, is_offline, load_text_data
from dpft.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[2]
SENTINEL = "private-sentinel-7261"
ROWS = [{"sentence": "fine", "label": 1, "idx": 0}, {"sentence": "dull", "label": 0, "idx": 1}]

pytestmark = pytest.mark.usefixtures("home")


class FakeRows(list[dict[str, Any]]):
    column_names = ("sentence", "label", "idx")

    def select_columns(self, names: list[str]) -> list[dict[str, Any]]:
        return [{name: row[name] for name in names} for row in self]


class FakeLibrary:
    """What hub.py uses of ``datasets``."""

    def __init__(self, rows: list[dict[str, Any]] = ROWS, commit: str = COMMIT, error: Exception | None = None) -> None:
        self.rows, self.hash, self.error = rows, commit, error
        self.asked: tuple[Any, ...] = ()
        self.info = SimpleNamespace(splits={"train": None, "validation": None})

    def load_dataset_builder(self, *args: Any, **kwargs: Any) -> FakeLibrary:
        self.asked = (*args, kwargs)
        return self

    def download_and_prepare(self) -> None:
        if self.error:
            raise self.error

    def as_dataset(self, split: str) -> FakeRows:
        return FakeRows(self.rows if split == "train" else self.rows[:1])


def section(**fields: object) -> DataSection:
    values = {
        "source": "hub",
        "path": "nyu-mll/glue",
        "config": "sst2",
        "text": "sentence",
        "labels": ["neg", "pos"],
        "unit": "sentence",
        **fields,
    }
    return validate(DataSection, values, "data")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(library: FakeLibrary) -> FakeLibrary:
        monkeypatch.setattr(hub, "_library", lambda: library)
        return library

    return use


def refusal(**fields: object) -> str:
    with pytest.raises(InputError) as caught:
        load_text_data(section(**fields))
    assert caught.value.__context__ is None
    assert SENTINEL not in str(caught.value)
    return str(caught.value)


def test_records_of_both_splits(use: Any) -> None:
    """I3: nothing that could allow remote code is passed on."""
    library = use(FakeLibrary())
    data = load_text_data(section(eval_split="validation", revision="main"))
    assert data.train == (Record("fine", None, 1), Record("dull", None, 0))
    assert data.heldout == (Record("fine", None, 1),)
    assert library.asked == ("nyu-mll/glue", "sst2", {"revision": "main"})


def test_missing_splits_columns_and_labels_are_named(use: Any) -> None:
    """F2: rows by number."""
    use(FakeLibrary())
    assert 'data.split: nyu-mll/glue has no split "test"; it has train, validation.' in refusal(split="test")
    assert "data.eval_split" in refusal(eval_split="test")
    assert 'has no column "text"; it has the columns sentence, label, idx.' in refusal(text="text")
    use(FakeLibrary([*ROWS, {"sentence": SENTINEL, "label": -1, "idx": 2}]))
    assert "row 3 of nyu-mll/glue, train: the label is none of data.labels (neg, pos)" in refusal()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ConnectionError(SENTINEL), "check the network"),
        (ValueError(SENTINEL), "check data.config"),
        (type("DatasetNotFoundError", (Exception,), {})(SENTINEL), "needs a login"),
        (RuntimeError(SENTINEL), "RuntimeError"),
    ],
)
def test_whatever_the_library_raises_is_one_sentence(use: Any, error: Exception, advice: str) -> None:
    """F2: the library's texts may quote data, so only the kind of error is named."""
    use(FakeLibrary(error=error))
    assert advice in refusal()


def test_a_pinned_commit_is_that_commit(use: Any) -> None:
    """I3: revisions pinned; the library's newest cached copy is no substitute."""
    use(FakeLibrary())
    assert len(load_text_data(section(revision=COMMIT)).train) == 2
    use(FakeLibrary(commit="f" * 40))
    assert refusal(revision=COMMIT).startswith("data.revision")


def test_a_local_folder_is_not_taken_for_the_hubs(use: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: what a recipe names on the hub comes from the hub."""
    use(FakeLibrary())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nyu-mll" / "glue").mkdir(parents=True)
    assert "hides the hub's data set" in refusal()


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("", False), ("0", False), ("False", False)]
)
@pytest.mark.parametrize("variable", ["DPFT_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_offline_variables(variable: str, value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    assert is_offline() == expected


_OFFLINE = """
import os, socket
import datasets  # first, so that the variable comes too late for the library to see it itself
tried = []
def refuse(*_, **__):
    tried.append(1)
    raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
os.environ["DPFT_OFFLINE"] = "1"
from dpft.config import DataSection
from dpft.data import load_text_data
from dpft.errors import InputError
try:
    load_text_data(DataSection(source="hub", path="nyu-mll/glue", labels=("a", "b"), unit="sentence"))
except InputError as error:
    print(error)
print("connections:", len(tried), "telemetry:", datasets.config.HF_UPDATE_DOWNLOAD_COUNTS)
"""


def test_the_true_library_tries_no_connection_when_offline() -> None:
    """I3: offline honoured, no telemetry; sockets patched to raise."""
    found = subprocess.run([sys.executable, "-c", _OFFLINE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fetching is forbidden by DPFT_OFFLINE or HF_HUB_OFFLINE" in found.stdout
    assert "connections: 0 telemetry: False" in found.stdout
