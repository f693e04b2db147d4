"""What a trained model writes: scored on held-out sources, and shown after public prompts.

Decoding is post-processing of a model that was trained privately. Scores are computed without noise from the held-out
records: public only if those records are, like every figure of an evaluation. Samples are public: their prompts are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dpft.config.generate_section import GenerateSection
from dpft.metrics import check_metrics, score
from dpft.models.can_write import Ends, check_writing, ends_of
from dpft.models.writing import sample, write


@dataclass(frozen=True)
class Source:
    """What a text is written from, and all texts that were written from it. ``repr`` shows neither."""

    context_ids: tuple[int, ...] = field(repr=False)  # as in training: what comes before the target
    references: tuple[str, ...] = field(repr=False)  # at least one


def grouped(records: Iterable[tuple[str, Sequence[int], str]]) -> list[Source]:
    """Records of (rendered context, its ids, target) by source, in the order in which the sources come first.

    Records whose rendered context is the same have one source; one whose context was cut to the same ids has not."""
    found: dict[str, tuple[tuple[int, ...], list[str]]] = {}
    for context, ids, target in records:
        found.setdefault(context, (tuple(int(i) for i in ids), []))[1].append(target)
    return [Source(ids, tuple(targets)) for ids, targets in found.values()]


def written_scores(
    model: Any,
    tokenizer: Any,
    sources: Sequence[Source],
    section: GenerateSection,
    compute: torch.dtype = torch.float32,
) -> dict[str, float | str]:
    """Each of ``section.metrics`` by its name: a figure, or a sentence that says why there is none.

    One text a source, for the first ``section.limit`` of them (0: all), against all of its references. As private as
    the sources. InputError as :func:`check_metrics`; whether the contexts fit the model is asked of
    :func:`check_writing` before training, with the public ``data.max_length``, and not of the sources here."""
    if not section.metrics:
        return {}
    check_metrics(section.metrics)
    chosen = sources[: section.limit or None]
    ends = ends_of(model, tokenizer, section)
    ids = write(model, [s.context_ids for s in chosen], section, ends, compute)
    return score(section.metrics, [_text(tokenizer, row) for row in ids], [s.references for s in chosen])


def samples(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    section: GenerateSection,
    seed: int,
    encode: Callable[[str], Sequence[int]] | None = None,
    compute: torch.dtype = torch.float32,
) -> list[tuple[str, list[str]]]:
    """Each public prompt with ``section.samples`` texts that go on from it, drawn by the public ``seed``.

    ``encode`` makes a prompt's ids, as contexts were made in training; absent, the tokenizer alone does. A prompt
    without any token starts at the beginning of a text."""
    ends = ends_of(model, tokenizer, section)
    contexts = [[*(encode(p) if encode else tokenizer(p)["input_ids"])] or [_start(tokenizer, ends)] for p in prompts]
    check_writing(model, max(map(len, contexts), default=1), section)
    drawn = sample(model, contexts, section, ends, seed, compute)
    return [(prompt, [_text(tokenizer, row) for row in rows]) for prompt, rows in zip(prompts, drawn, strict=True)]


def _start(tokenizer: Any, ends: Ends) -> int:
    """The token that texts begin with; of models without one, that which ends the text before."""
    found = tokenizer.bos_token_id
    return int(found if found is not None else (*ends.stop, ends.pad)[0])


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
