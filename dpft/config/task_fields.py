"""What is learnt from a record, and which fields of ``[data]`` each task has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from dpft.config.base import wrong

if TYPE_CHECKING:
    from dpft.config.data_section import DataSection

Task = Literal["classification", "multilabel", "regression", "token-classification", "causal-lm", "seq2seq"]

TASKS: tuple[Task, ...] = get_args(Task)
LANGUAGE_TASKS = ("causal-lm", "seq2seq")
"""Tasks whose model writes text; all others have a linear head."""

_LEAST_LABELS = {"classification": 2, "multilabel": 1, "token-classification": 2}


def unused_by(task: Task, target: str | None) -> tuple[str, ...]:
    """Fields of a text's table that say nothing in this task."""
    if task == "causal-lm":
        return ("label", "labels", "text_pair", *(() if target else ("target_length", "separator", "linearise")))
    if task == "seq2seq":
        return ("label", "labels", "separator")
    of_language = ("target", "target_length", "separator", "linearise")
    if task == "regression":
        return ("labels", *of_language)
    return ("text_pair", "template", *of_language) if task == "token-classification" else of_language


def check_task(section: DataSection) -> None:
    """Raise ValueError, for the section's own checks, where the task lacks a field."""
    least = _LEAST_LABELS.get(section.task, 0)
    if len(section.labels) < least:
        raise wrong("labels", f"expected the names of at least {least} {'classes' if least > 1 else 'label'}; add them")
    if section.task == "seq2seq" and section.target is None:
        raise wrong("target", "expected the column of the text to write; set data.target")
    if section.linearise is not None and section.target is None:
        raise wrong("linearise", "a meaning representation is written out as a text; set data.target")
