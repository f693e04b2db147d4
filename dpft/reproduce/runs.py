"""Run recipes, each with privacy and without, one after the other; what is finished stays, what was begun goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpft.config import Recipe, load_recipe
from dpft.errors import DpftError
from dpft.reproduce.results import PRIVATE, TWIN, Result, Side, add_time, begun, finished, result, side

Runner = Callable[[Recipe, Path, bool], Any]
"""Runs a recipe into a folder, resuming where the last is true."""


def run_all(
    paths: list[Path],
    overrides: list[str],
    out: Path,
    runner: Runner,
    *,
    twins: bool = True,
    device: Callable[[], str] = lambda: "",
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """The result of each recipe in turn, its folders under ``out``. An error of one run stands in its result and stops
    no other; once ``stopped`` says so, no further run starts."""
    for path in paths:
        if stopped():
            return
        try:
            recipe = load_recipe(path, overrides)
        except DpftError as error:
            yield Result(path.stem, None, Side(fault=str(error)), None)
            continue
        home = out / recipe.name
        faults = {PRIVATE: _run(path, overrides, home, PRIVATE, runner, device)}
        if twins and not stopped():
            faults[TWIN] = _run(path, [*overrides, "privacy.enabled=false"], home, TWIN, runner, device)
        sides = {which: side(home, which, recipe, fault) for which, fault in faults.items()}
        yield result(home, recipe, sides[PRIVATE], sides.get(TWIN))


def _run(path: Path, overrides: list[str], home: Path, which: str, runner: Runner, device: Callable[[], str]) -> str:
    """One run, unless it is finished; the sentence that says what went wrong, empty if nothing did."""
    folder = home / which
    if finished(folder):
        return ""
    start = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runner(load_recipe(path, overrides), folder, begun(folder))
        return ""
    except DpftError as error:
        return str(error)
    except Exception as error:  # no closed list: the other recipes are to run
        if os.environ.get("DPFT_TRACEBACK"):
            raise
        return (
            f"{type(error).__name__} was not foreseen; set DPFT_TRACEBACK=1 to see it."  # its text may quote a record
        )
    finally:
        if home.is_dir():
            add_time(home, which, time.monotonic() - start, device())
