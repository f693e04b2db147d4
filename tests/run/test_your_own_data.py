"""docs/your-own-data.md: every command in it runs as printed, in order, and leaves what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dpft.config import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "your-own-data.md"
SECRET = "zyxsecret"
# The tiny model of these tests, and no more text than it takes.
TINY = ("model.source=./bert", "data.max_length=16", "train.precision=float32")


def on_the_tiny_model(command: str) -> list[str]:
    """What a command needs beside what is printed."""
    if command.startswith(("dpft run", "dpft plan letters.toml")):
        return [word for override in TINY for word in ("--set", override)]
    return ["--base", "bert"] if "--merge" in command else []


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def letters(path: Path) -> None:
    """120 letters by 40 patients, each with a word of its own, in the page's columns."""
    classes = ("appointment", "billing", "symptoms")
    rows = [f'{i % 40},"the plot was {SECRET}{i}",{classes[i % 3]}' for i in range(120)]
    path.write_text("\n".join(["patient,body,category", *rows]) + "\n")


@pytest.fixture(scope="module")
def followed(make_place: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, str]]:
    """The folder after all commands, and what each printed."""
    place = make_place(tmp_path_factory.mktemp("own"))
    letters(place.folder / "letters.csv")
    printed = {}
    for command in commands():
        words = shlex.split(command)
        assert words[0] == "dpft"
        answer = place.dpft(*words[1:], *on_the_tiny_model(command))
        assert answer.code == 0, (command, answer.err)
        printed[command] = answer.out
    return place, printed


def test_every_command_does_what_the_page_says(followed: tuple[Any, dict[str, str]]) -> None:
    place, printed = followed
    assert len(printed) >= 9
    assert SECRET not in "".join(printed.values())
    assert "epsilon 2.99" in next(out for command, out in printed.items() if command.startswith("dpft plan letters"))
    recipe = load_recipe(place.folder / "letters.toml")
    assert (recipe.data.group, recipe.data.unit) == ("patient", "patient")
    assert recipe.data.labels == ("appointment", "billing", "symptoms")
    assert (place.folder / "handover-merged" / "model.safetensors").is_file()


def test_the_folder_is_the_one_on_the_page(followed: tuple[Any, dict[str, str]]) -> None:
    """F2, F3: what may leave holds nothing of a letter; what else a run leaves is named as private."""
    place, _ = followed
    folder = place.folder / "runs" / "letters"
    block = PAGE.read_text().split("runs/letters/\n")[1].split("```")[0]
    named = {name for line in block.splitlines() for name in re.findall(r"^  (\S+)", line)}
    named = {name.rstrip("/") for name in named} | {"report.md"}
    assert {path.name for path in folder.iterdir()} <= named
    assert (folder / "private" / "evaluation.json").is_file()
    for path in folder.rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert SECRET.encode() not in path.read_bytes(), path.name


def test_options_on_the_page_exist(followed: tuple[Any, dict[str, str]]) -> None:
    place, _ = followed
    options = set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text().split("## Other shapes")[1]))
    text = place.dpft("init", "--help").out
    assert options
    assert all(option in text for option in options)
