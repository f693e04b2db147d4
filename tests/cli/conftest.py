"""The command line, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.toml"


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def dpft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """``dpft("plan", ...)`` in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        from dpft.cli import main

        monkeypatch.setattr(sys, "argv", ["dpft", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = stop.code
        return Answer(code or 0, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], str]:
    """What a piece of code prints, in a fresh interpreter and an empty folder."""

    def run(code: str) -> str:
        made = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert made.returncode == 0, made.stderr
        return made.stdout

    return run


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    """A copy of the recipe, to bend."""
    path = tmp_path / "recipe.toml"
    path.write_text(QUICKSTART.read_text())
    return path


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A recipe over files that do not exist: what touches data or model would fail."""
    path = tmp_path / "local.toml"
    path.write_text(
        'name = "local"\n[data]\nsource = "csv"\npath = "absent.csv"\nlabels = ["a", "b"]\nunit = "letter"\n'
        '[model]\nsource = "./absent"\n[method]\nname = "lora"\n'
        "[privacy]\nepsilon = 3.0\ndelta = 1e-6\nexamples = 10000\nexpected_batch = 100\nepochs = 1.0\n"
    )
    return path
