"""What finished runs have to say, read from their folders, so that a table can be made again without running."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpft.config import Recipe
from dpft.config.expected_section import ExpectedSection
from dpft.files import read_json, write_json

PRIVATE, TWIN = "private", "not-private"
"""The folders of a recipe's two runs, under its own."""

_TIMES = "times.json"


@dataclass(frozen=True)
class Side:
    """One of a recipe's two runs. ``value`` is in per cent for accuracy and as the metric is printed otherwise; None
    where the run is not finished, or its held-out records are not public. ``fault`` is a sentence."""

    value: float | None = None
    seconds: float | None = None
    device: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Result:
    """A recipe's runs beside what was published. ``epsilon`` and ``parameters`` are those of the private run."""

    name: str
    expected: ExpectedSection | None
    private: Side
    twin: Side | None
    epsilon: float | None = None
    delta: float | None = None
    parameters: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        sides = {"private": self.private, "not_private": self.twin}
        return {
            "name": self.name,
            "expected": self.expected.model_dump(exclude_none=True) if self.expected else None,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "parameters": self.parameters,
            **{key: None if side is None else dict(vars(side)) for key, side in sides.items()},
        }


def finished(folder: Path) -> bool:
    """Whether a run has come to its end: its statement is the last thing that it writes."""
    return (folder / "privacy.json").is_file()


def begun(folder: Path) -> bool:
    """Whether a run got far enough to be resumed; before its ledger there is nothing to go on from."""
    return folder.is_dir() and bool({path.name for path in folder.iterdir()} - {"run.toml", "private"})


def side(home: Path, which: str, recipe: Recipe, fault: str = "") -> Side:
    """One run of the recipe whose folder is ``home``. Times too are told of public records alone."""
    if not recipe.evaluate.public:
        return Side(fault=fault)
    spent = _times(home).get(which, {})
    value = score(home / which, recipe) if finished(home / which) else None
    return Side(value, spent.get("seconds"), spent.get("device", ""), fault)


def result(home: Path, recipe: Recipe, private: Side, twin: Side | None) -> Result:
    """The row of a recipe, with what its private run's statement says."""
    if not finished(home / PRIVATE):
        return Result(recipe.name, recipe.expected, private, twin)
    made = read_json(home / PRIVATE / "privacy.json")
    count = made["trained_parameters"]["count"]
    return Result(recipe.name, recipe.expected, private, twin, float(made["epsilon"]["upper"]), made["delta"], count)


def score(folder: Path, recipe: Recipe) -> float | None:
    """The run's result by the metric that was published, accuracy where none was. Public records only."""
    metric = recipe.expected.metric if recipe.expected else "accuracy"
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
    found = next((row["value"] for row in rows if _is(metric, row.get("name"))), None)
    kept = folder / "private" / "evaluation.json"
    if found is None and kept.is_file():
        found = next((value for name, value in read_json(kept).items() if _is(metric, name)), None)
    if not isinstance(found, int | float):
        return None
    return round(100 * found, 2) if metric == "accuracy" else round(float(found), 4)


def add_time(home: Path, which: str, seconds: float, device: str) -> None:
    """Note what a run took, on top of what it took before it was interrupted."""
    times = _times(home)
    before = times.get(which, {}).get("seconds", 0.0)
    write_json(home / _TIMES, {**times, which: {"seconds": before + seconds, "device": device}}, private=True)


def _times(home: Path) -> dict[str, Any]:
    path = home / _TIMES
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def _is(metric: str, name: object) -> bool:
    """Whether a figure is that metric's, after training: "bleu" or "BLEU on held-out records"."""
    if not isinstance(name, str):
        return False
    return name.lower().removesuffix(" on held-out records").replace("_", "-") == metric.lower()
