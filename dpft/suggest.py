"""From public figures to settings that private training tends to want. Rules of thumb with reasons; no data is read.

    expected_batch   grows with the square root of the number of records
    epochs           few where epsilon is small
    lr               high for few steps, since what is added starts at zero
    method           the fewer records, the fewer trained numbers: each gets the same noise

Every number that a rule uses stands in :data:`RULES`, to be set from measurements on *public* records. Searching
settings on private records costs privacy: ``dpft plan --mean-trials`` plans such a search, a ledger charges it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from dpft.config.task_fields import LANGUAGE_TASKS, Task
from dpft.engine.plan import Plan
from dpft.errors import InputError

T = TypeVar("T")
Steps = Sequence[tuple[float, T]]
"""(limit, value) with rising limits: the value of the first limit that is not exceeded."""


@dataclass(frozen=True)
class Rules:
    """What the rules use."""

    batch: float = 5.5  # expected batch over the square root of the number of records
    epochs: Steps[float] = ((1.0, 5.0), (8.0, 10.0), (math.inf, 20.0))  # by epsilon
    clip: float = 1.0
    way: float = 1.0  # the rate of what starts at zero, times the number of steps
    most_rate: float = 3e-2
    least_head_rate: float = 1e-2
    language_share: float = 0.1  # of the rate, under a head that is trained already
    methods: Steps[Mapping[str, Any]] = field(
        default=(
            (1_000, {"name": "head"}),
            (20_000, {"name": "lora", "rank": 4}),
            (math.inf, {"name": "lora", "rank": 16}),
        )
    )  # by the number of records
    language_method: Mapping[str, Any] = field(default_factory=lambda: {"name": "lora", "rank": 8})
    pooling: str = "mean"
    feature_norm: float = 10.0  # where the width is not known
    norm_by_width: float = 0.51  # feature norm over the square root of the width
    average: str = "none"  # which steps' values are averaged: "none", "ema" or "tail"
    least_batch_share: float = 0.01  # of the records: a batch below that draws a remark
    most_noise: float = 0.02  # on each number of the average gradient, in units of clip: beyond it draws a remark


RULES = Rules()


_METHOD_WHY = "every trained number gets the same noise, so few records want few"


class Line(NamedTuple):
    """One line of a recipe, by its dotted key, and why."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Suggestion:
    """Settings for a task, from public figures alone. ``steps`` follows from batch, epochs and records."""

    records: int
    expected_batch: int
    epochs: float
    steps: int
    clip: float
    lr: float
    head_lr: float | None  # None: no new head
    method: Mapping[str, Any]
    pooling: str | None
    feature_norm: float | None
    average: str

    def lines(self) -> tuple[Line, ...]:
        """The recipe's lines that say so."""
        found = [
            Line("privacy.expected_batch", self.expected_batch, "the more records share a step's noise, the better"),
            Line("privacy.epochs", self.epochs, f"{self.steps} steps; each more asks for more noise in all"),
            Line("privacy.clip", self.clip, "Adam cancels its size; most gradients are cut"),
            Line("optimizer.lr", self.lr, "what starts at zero has to get away in so many steps"),
            Line("optimizer.head_lr", self.head_lr, "a new head starts at zero, and is small"),
            *(Line(f"method.{k}", v, _METHOD_WHY if k == "name" else "") for k, v in self.method.items()),
            Line("model.pooling", self.pooling, "the first token alone was often not trained to stand for the text"),
            Line("model.feature_norm", self.feature_norm, "one scale for all records, so that one clip fits them"),
            Line("optimizer.average", None if self.average == "none" else self.average, "evens out noise, for free"),
        ]
        return tuple(line for line in found if line.value is not None)


def suggest(
    records: int, epsilon: float, task: Task = "classification", width: int | None = None, rules: Rules = RULES
) -> Suggestion:
    """Settings for about ``records`` units at ``epsilon``; ``width`` is the encoder's, where known.

    Errors: :class:`InputError` for figures that make no sense."""
    if records < 1 or not 0 < epsilon < math.inf or (width is not None and width < 1):
        raise InputError(
            f"Expected records={records} of at least 1 and a finite epsilon={epsilon:g} above 0; correct them."
        )
    batch, epochs = expected_batch(records, rules), epochs_for(epsilon, rules)
    steps = math.ceil(epochs * records / batch - 1e-9)
    language, lr = task in LANGUAGE_TASKS, learning_rate(steps, task, rules)
    return Suggestion(
        records=records,
        expected_batch=batch,
        epochs=epochs,
        steps=steps,
        clip=rules.clip,
        lr=lr,
        head_lr=None if language else max(lr, rules.least_head_rate),
        method=method(records, task, rules),
        pooling=None if language or task == "token-classification" else rules.pooling,
        feature_norm=None if language else feature_norm(width, rules),
        average=rules.average,
    )


def expected_batch(records: int, rules: Rules = RULES) -> int:
    """A constant times the square root of the number of records, in two digits.

    At fixed epsilon and epochs a larger batch has less noise in all and fewer steps. Li et al. 2022 (2110.05679) and
    De et al. 2022 (2204.13650) find large batches best; Yu et al. 2022 use 2,000 of 67,349. Measured here, over four
    epochs of 8,605: 512 gave more than 1,024 (docs/log.md). The square root goes near both.

    >>> [expected_batch(n) for n in (50, 1_000, 8_605, 67_349)]
    [39, 170, 510, 1400]
    """
    exact = min(rules.batch * math.sqrt(records), records)
    digits = 10 ** max(math.floor(math.log10(exact)) - 1, 0)
    return int(min(max(round(exact / digits) * digits, 1), records))


def epochs_for(epsilon: float, rules: Rules = RULES) -> float:
    """Fewer where the budget is small.

    For a fixed epsilon the noise of a step grows with about the square root of their number, and what is learnt does
    not. At 6.7, ten epochs of 8,605 sentences gave more than four, which the quickstart has to be short; twenty are Yu
    et al.'s, with eight times the records; five at an epsilon of 1 or less leave less noise in each step."""
    return up_to(epsilon, rules.epochs)


def learning_rate(steps: int, task: Task = "classification", rules: Rules = RULES) -> float:
    """One over the number of steps, to half a digit: what starts at zero has a way to go, and each step of Adam goes
    about one rate far.

    Measured for LoRA on query and value of public sentences (docs/log.md): 3e-2 in 34 steps, 1.5e-2 in 68, 1e-2 in 84,
    3e-3 in 216; Yu et al. 2022 use 1e-3 over 670. LoRA on every layer wanted a third of that. A language model's head
    is trained already and every change of the layers below is felt at once: its rates are a tenth.

    >>> [learning_rate(n) for n in (10, 34, 68, 84, 216, 670)]
    [0.03, 0.03, 0.015, 0.01, 0.0045, 0.0015]
    """
    rate = min(rules.way / steps, rules.most_rate) * (rules.language_share if task in LANGUAGE_TASKS else 1.0)
    half = 0.5 * 10.0 ** math.floor(math.log10(rate))
    return float(f"{round(rate / half) * half:.1e}")


def method(records: int, task: Task = "classification", rules: Rules = RULES) -> Mapping[str, Any]:
    """The head alone for few records, LoRA on the family's usual layers for more, of higher rank for many.

    Each trained number gets noise of the same size, whatever the number of records. Measured at 8,605 sentences:
    head 77.9 %, LoRA of rank 4 on every layer 80.2 %, all weights 77.3 %. Yu et al. 2022 use rank 16 from 67,349 on."""
    return rules.language_method if task in LANGUAGE_TASKS else up_to(records, rules.methods)


def feature_norm(width: int | None, rules: Rules = RULES) -> float:
    """About half of the square root of the encoder's width; 10 where that is not known.

    10 was measured at width 384. Normalised features have a norm that grows with the root of their width, and with
    it the head's gradients, which share one clip with all others."""
    return rules.feature_norm if width is None else float(max(round(rules.norm_by_width * math.sqrt(width)), 1))


def delta_for(records: int) -> float:
    """A power of ten between a hundredth and a tenth of one over the number of records.

    A delta of one over it would permit publishing somebody's record outright.

    >>> [delta_for(n) for n in (500, 8_605, 10_000)]
    [0.0001, 1e-05, 1e-06]
    """
    return float(f"1e-{len(str(records)) + 1}")


def remarks(made: Plan, rules: Rules = RULES) -> tuple[str, ...]:
    """What a plan does very differently, one sentence each; nothing about most plans."""
    batch = made.expected_batch_size
    records = round(batch / made.sample_rate)
    better = expected_batch(records, rules)
    noise = made.noise_multiplier / batch
    found = []
    if batch < min(rules.least_batch_share * records, better / 4):
        found.append(
            f"a batch of {batch:g} is {batch / records:.1%} of about {records:,} records; {better} would take the same "
            f"time an epoch and leave less noise (--set privacy.expected_batch={better})."
        )
    if noise > rules.most_noise:
        found.append(
            f"noise of {noise:.2g} clips on every number of a step's average drowns most methods; take a larger batch, "
            "fewer epochs, a larger epsilon or a method that trains less, such as head."
        )
    return tuple(found)


def up_to(value: float, steps: Steps[T]) -> T:
    """The value of the first limit that ``value`` does not exceed.

    >>> up_to(3, ((1, "few"), (5, "some")))
    'some'
    """
    return next(chosen for limit, chosen in steps if value <= limit)
