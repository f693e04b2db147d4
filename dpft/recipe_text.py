"""A commented recipe as TOML: every line with its unit or meaning, the first line the command that runs it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpft.config.dump import toml_value
from dpft.config.task_fields import Task
from dpft.suggest import Suggestion

HELDOUT = 0.1
"""The fraction of units that a recipe holds out, where their number is secret."""

_COLUMN = 29  # where comments begin
_LENGTH = 128

_COLUMN_NAMES = {
    "text": "column of the text",
    "text_pair": "column of the second text",
    "label": "column of the label",
    "target": "column of the text to write",
    "group": "column whose equal values make rows one unit; a draw of it takes one of its rows",
}
_TASKS: Mapping[Task, str] = {
    "classification": "one of the labels holds for a text",
    "multilabel": "any number of the labels may hold for a text; the column lists them, or parts them by semicolons",
    "regression": "a number is learnt",
    "token-classification": "a tag for each word; the column lists them, or parts them by spaces",
    "causal-lm": "a decoder goes on writing",
    "seq2seq": "an encoder reads, a decoder writes",
}


@dataclass(frozen=True)
class Choices:
    """All that a recipe says of somebody's file. ``labels``: None where the task has none, () to be filled in."""

    name: str
    file: Path  # the recipe's own
    data: Path
    source: str
    task: Task
    columns: Mapping[str, str]
    labels: tuple[str, ...] | None
    unit: str
    model: str
    public: bool
    epsilon: float
    delta: float
    suggested: Suggestion


def recipe_text(c: Choices) -> str:
    """The whole recipe. Texts of the user's are escaped wherever they stand."""
    tables = (_heading(c), _data(c), _model(c), _method(c), _privacy(c), _optimizer(c), _evaluate(), _ledger(c))
    return "\n".join("".join(f"{row}\n" for row in table) for table in tables)


def _line(key: str, value: Any, comment: str) -> str:
    return f"{key} = {toml_value(value)}".ljust(_COLUMN - 1) + f" # {comment}"


def _heading(c: Choices) -> Iterator[str]:
    yield f"# dpft run {_in_comment(c.file)}"
    yield f"# Written by dpft init for {_in_comment(c.data)}, from its column names alone. Settings are rules of thumb."
    yield _line("name", c.name, "names the run's folder: a-z, 0-9, dots, underscores, hyphens")
    yield _line("seed", 0, "initialisation of added parameters only; never noise or sampling")


def _data(c: Choices) -> Iterator[str]:
    yield "[data]"
    yield _line("source", c.source, '"csv", "json" (one object a line), "parquet", or "hub"')
    yield _line("path", str(c.data), "file or glob, relative to the working directory")
    yield _line("task", c.task, _TASKS[c.task])
    if c.public:
        yield _line("heldout", 0.0, "none: the public number is that of all records; name others by eval_path")
    else:
        yield _line(
            "heldout", 0.1, f"fraction held out, by a hash of each {'group' if 'group' in c.columns else 'record'}"
        )
    yield from (_line(field, name, _COLUMN_NAMES[field]) for field, name in c.columns.items())
    if c.labels is not None:
        fill = "" if c.labels else "fill in all "
        yield _line("labels", list(c.labels), f"{fill}names, in the order of the class ids; public, never inferred")
    yield _line("max_length", _LENGTH, "tokens kept of a text, a public constant")
    if "target" in c.columns:
        yield _line("target_length", _LENGTH, "tokens kept of the text to write, a public constant")
    yield _line("unit", c.unit, "what one unit of privacy is called in the statement")
    if "group" not in c.columns:
        yield '# group = "patient"         # if rows belong to people: the column that says whose; the unit is a person'


def _model(c: Choices) -> Iterator[str]:
    yield "[model]"
    yield _line("source", c.model, '"package:NAME", a hub name, or a local folder with config.json')
    yield from _suggested(
        c, "model", pooling="how token features become one vector", feature_norm="L2 norm that features are scaled to"
    )


def _method(c: Choices) -> Iterator[str]:
    yield "[method]"
    yield from _suggested(
        c, "method", name="what trains; the rest stays frozen (dpft methods lists all)",
        rank="rank of each added pair of factors", targets="names of the layers that get factors",
    )  # fmt: skip


def _privacy(c: Choices) -> Iterator[str]:
    batch = c.suggested.expected_batch
    yield "[privacy]"
    yield _line("epsilon", float(c.epsilon), "the budget; the noise is calibrated to it")
    yield _line("delta", c.delta, "probability that the epsilon does not hold; below one over the number of units")
    if c.public:
        yield _line("examples", c.suggested.records, "exact public number of training units, so adjacency is zero-out")
    else:
        rate = float(f"{batch / c.suggested.records:.4g}")
        yield _line("sample_rate", rate, "each unit's chance to be in a batch; their number stays secret: add/remove")
    yield _line("expected_batch", batch, "constant divisor of every step: about the units in a batch")
    yield _line("epochs", c.suggested.epochs, f"expected passes; with the rate they make {c.suggested.steps} steps")
    yield _line("clip", c.suggested.clip, "L2 bound on one unit's gradient")


def _optimizer(c: Choices) -> Iterator[str]:
    yield "[optimizer]"
    yield _line("name", "adam", "the optimiser of the noisy gradients")
    yield from _suggested(
        c, "optimizer", lr="learning rate of what the method trains, per step",
        head_lr="learning rate of the new head, per step", average="which average of the steps is released: free",
    )  # fmt: skip


def _evaluate() -> Iterable[str]:
    return ("[evaluate]", _line("public", False, "held-out records are private, so figures on them stay in private/"))


def _ledger(c: Choices) -> Iterable[str]:
    examples = f" --examples {c.suggested.records}" if c.public else ""
    unit = _in_comment(c.unit)
    return (
        "# One budget for all runs on these records, each search for settings included. Open the books once:",
        f"#   dpft ledger create books.jsonl --dataset {c.name} --unit {unit}{examples} "
        f"--epsilon {2 * c.epsilon:g} --delta {c.delta:g}",
        "# [ledger]",
        '# file = "books.jsonl"         # the data set\'s own ledger; each run is charged its whole plan there',
        f'# dataset = "{c.name}"',
    )


def _suggested(c: Choices, table: str, **comments: str) -> Iterator[str]:
    """The suggestion's lines of one table, with these comments."""
    values = {line.key: line.value for line in c.suggested.lines()}
    for key, comment in comments.items():
        if f"{table}.{key}" in values:
            yield _line(key, values[f"{table}.{key}"], comment)


def _in_comment(text: object) -> str:
    """A word of a command; what a comment may not hold is escaped."""
    word = shlex.quote(str(text))
    return word if word.isprintable() else shlex.quote(ascii(str(text))[1:-1])
