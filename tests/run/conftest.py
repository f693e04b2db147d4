"""A tiny BERT with random weights, a small CSV, a recipe over both, and the command line in this process."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_WORDS = ["good", "bad", "film", "plot", "dull", "fine", "the", "a", "was", "very"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

RECIPE = """\
name = "tiny"
[data]
source = "csv"
path = "records.csv"
labels = ["bad", "good"]
max_length = 16
unit = "note"
heldout = 0.2
[model]
source = "./bert"
[method]
name = "lora"
rank = 2
targets = ["query", "value"]
[privacy]
noise_multiplier = 1.0
delta = 1e-5
sample_rate = 0.25
expected_batch = 10
steps = 8
[optimizer]
lr = 1e-3
[train]
token_budget = 64
precision = "float32"
checkpoint_every = 3
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT of 4,000 weights, with a WordPiece vocabulary of single letters and a few words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("model") / "bert"
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *_WORDS, *_LETTERS, *(f"##{c}" for c in _LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_records(path: Path, count: int, *, changed: str = "") -> None:
    """``count`` records, each with a word that occurs nowhere else."""
    lines = ["text,label"]
    for i in range(count):
        label = ("bad", "good")[i % 2]
        lines.append(f"the film was {label} zyxprivate{_LETTERS[i % 26]}{_LETTERS[i // 26]}{changed},{label}")
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Place:
    """A working folder with a recipe, its records and its model; commands run in it."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    def records(self, count: int, **options: Any) -> None:
        write_records(self.folder / "records.csv", count, **options)

    def dpft(self, *arguments: str) -> Answer:
        """The command line, in this process."""
        from dpft.cli import main

        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["dpft", *arguments])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main()
                except SystemExit as stop:
                    code = stop.code
        return Answer(code or 0, out.getvalue(), err.getvalue())

    def start(self, *arguments: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """The command line in a process of its own, after the line ``before``."""
        code = f"import sys\n{before}\nsys.argv = ['dpft', *{list(arguments)!r}]\nfrom dpft.cli import main\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="session")
def make_place(bert: Path) -> Callable[[Path], Place]:
    def make(folder: Path) -> Place:
        folder.mkdir(exist_ok=True)
        (folder / "tiny.toml").write_text(RECIPE)
        if not (folder / "bert").exists():
            (folder / "bert").symlink_to(bert)
        write_records(folder / "records.csv", 50)
        return Place(folder)

    return make


@pytest.fixture
def place(make_place: Callable[[Path], Place], tmp_path: Path) -> Iterator[Place]:
    return make_place(tmp_path / "work")


@dataclass(frozen=True)
class Finished:
    place: Place
    home: Path
    answer: Answer

    @property
    def folder(self) -> Path:
        return self.place.run

    def public_files(self) -> list[Path]:
        return [p for p in sorted(self.folder.rglob("*")) if p.is_file() and "private" not in p.parts]


# Every way to a connection raises; the run must not even try (I3).
_NO_NETWORK = """
import socket
def refuse(*_, **__):
    raise AssertionError("a run tried to open a connection")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
"""


def _finish(place: Place, home: Path, *overrides: str) -> Finished:
    for name in ("tmp", "cache"):
        (home / name).mkdir(parents=True)
    sets = [part for o in overrides for part in ("--set", o)]
    process = place.start(
        "run",
        "tiny.toml",
        *sets,
        before=_NO_NETWORK,
        HOME=str(home),
        TMPDIR=str(home / "tmp"),
        XDG_CACHE_HOME=str(home / "cache"),
        HF_HOME=str(home / "cache" / "hf"),
        MPLCONFIGDIR=str(home / "cache" / "mpl"),
    )
    out, err = process.communicate(timeout=120)
    return Finished(place, home, Answer(process.returncode, out, err))


@pytest.fixture(scope="session")
def finished(make_place: Any, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run whose held-out records are public."""
    base = tmp_path_factory.mktemp("finished")
    return _finish(make_place(base / "work"), base / "home", "evaluate.public=true")


@pytest.fixture(scope="session")
def discreet(make_place: Any, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The recipe's own default: nothing is said of the held-out records."""
    base = tmp_path_factory.mktemp("discreet")
    return _finish(make_place(base / "work"), base / "home")
