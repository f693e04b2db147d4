"""What a run finds on records that did not train, and where that goes: into the report only if they are public.

What the model writes after public prompts is post-processing of released weights, and may always be shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dpft.config import Recipe
from dpft.config.task_fields import LANGUAGE_TASKS
from dpft.files import write_atomic, write_json
from dpft.models.build import TaskModel
from dpft.score_written import samples, written_scores
from dpft.task import Task, Texts

Figures = Mapping[str, float | str]
Say = Callable[[str], None]


class Heldout:
    """The held-out records of a run. Its figures are computed without noise."""

    def __init__(self, recipe: Recipe, task: Task, records: Sequence[Any], compute: torch.dtype) -> None:
        self._recipe, self._task, self._records, self._compute = recipe, task, records, compute
        self._examples = task.examples(records)

    def __len__(self) -> int:
        return len(self._records)

    def before(self, model: TaskModel, say: Say) -> Figures:
        """A language model's figures as it was pretrained. A new head knows nothing, so there is nothing to say."""
        if not self._examples or self._recipe.data.task not in LANGUAGE_TASKS:
            return {}
        say("reading held-out records with the untrained model")
        return {f"{name} before training": value for name, value in self._scores(model).items()}

    def after(self, model: TaskModel, say: Say) -> Figures:
        """The trained model's figures."""
        found: dict[str, float | str] = {**self._scores(model)} if self._examples else {}
        section, task = self._recipe.generate, self._task
        if section is not None and section.metrics and self._records and isinstance(task, Texts):
            say("writing for held-out sources")
            sources = task.sources(self._records)
            found |= written_scores(model.encoder, task.tokenizer, sources, section, self._compute)
        return found

    def samples(self, folder: Path, model: TaskModel) -> None:
        """Write to samples.json what the model writes after the recipe's public prompts."""
        section, task = self._recipe.generate, self._task
        if section is None or not section.prompts or not isinstance(task, Texts):
            return
        drawn = samples(
            model.encoder, task.tokenizer, section.prompts, section, self._recipe.seed, task.prompt, self._compute
        )
        write_json(folder / "samples.json", {"samples": [{"prompt": p, "texts": texts} for p, texts in drawn]})

    def record(self, folder: Path, found: Figures) -> None:
        """Write the figures to metrics.jsonl if the records are public, and under private/ if not."""
        if not found:
            return
        rounded = {name: round(v, 4) if isinstance(v, float) else v for name, v in found.items()}
        if self._recipe.evaluate.public:
            rows = [{"name": f"{name} on held-out records", "value": value} for name, value in rounded.items()]
            rows.append({"name": "held-out records", "value": len(self)})
            # Written whole: a run resumed after its last step comes here again.
            write_atomic(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        else:
            write_json(folder / "private" / "evaluation.json", {**rounded, "records": len(self)}, private=True)

    def _scores(self, model: TaskModel) -> dict[str, float]:
        return self._task.scores(model, self._examples, self._recipe.train.tokens, self._compute)
