"""Prompts for ATTEMPT's sources, trained on public tasks by ordinary steps: without clipping, noise or ledger.

NOT PRIVATE. Whoever calls this declares the records public; a prompt trained on private ones gives them away, and so
does all that is mixed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dpft.config import Recipe
from dpft.data.origin import origin_of
from dpft.engine.microbatch import cut
from dpft.engine.plan import plan_from
from dpft.errors import InputError, PrivacyError
from dpft.models.losses import Loss
from dpft.models.source import resolve
from dpft.peft.prompt import Prompt
from dpft.peft.prompt_file import SourcePrompts, add_prompt, check_free
from dpft.peft.soft_prompt import cost
from dpft.per_sample.batches import examples_in, to_device
from dpft.run import build_model
from dpft.schedule import build_optimizer, set_rates
from dpft.task import task_of

Batch = Mapping[str, Tensor]


def train_prompt(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[Batch]],
    *,
    loss: Loss,
    public: bool,
) -> Tensor:
    """One ordinary step for every batch, which comes in parts; returns the model's prompt [P, d].

    ``model`` has :class:`dpft.PromptTuning` attached. ``loss(model, part)`` gives one loss an example.
    Raises :class:`PrivacyError` unless the caller declares ``public=True`` of all records in ``batches``."""
    _declared(public)
    part = next((m for m in model.modules() if isinstance(m, Prompt)), None)
    if part is None:
        raise InputError('Expected a model with method.name="prompt" attached: source prompts are such prompts.')
    for batch in batches:
        examples = sum(examples_in(piece) for piece in batch)
        for piece in batch:
            (loss(model, piece).sum() / examples).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return part.prompt.detach().clone()


def source_prompt(
    recipe: Recipe, to: Path, *, name: str, public: bool, say: Callable[[str], None] = lambda _: None
) -> SourcePrompts:
    """Train the prompt that ``recipe`` describes, by its optimizer, batches and steps, and add it to the file ``to``.

    The file keeps of which records it was made, so that no run declares them private (``dpft/declared.py``). Its
    ``[privacy]`` table says how many steps of how many records, and nothing else here: nothing is private."""
    if recipe.method.name != "prompt":
        raise InputError(f'Expected method.name="prompt" for a source prompt, found {recipe.method.name!r}.')
    _declared(public)
    check_free(to, name)
    steps, size = plan_from(recipe.privacy, recipe.data.unit).steps, recipe.privacy.expected_batch
    source = resolve(recipe.model.source, recipe.model.revision, seed=recipe.seed)
    model, _ = build_model(recipe, source)
    model.to(device := torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    task = task_of(recipe.data, source, model)
    origin = origin_of(recipe.data)
    data = task.load()
    examples = task.examples(data.train)
    optimizer = build_optimizer(recipe.optimizer, model, model.head)
    length, budget = cost(model, task.length), recipe.train.tokens

    def batches() -> Iterator[list[Batch]]:
        order = _order(len(examples), torch.Generator().manual_seed(recipe.seed))
        for step in range(steps):
            set_rates(optimizer, recipe.optimizer, step, steps)
            chosen = [examples[next(order)] for _ in range(min(size, len(examples)))]
            pieces = cut(range(len(chosen)), [length(e) for e in chosen], budget)
            yield [to_device(task.collate([chosen[i] for i in piece]), device) for piece in pieces]
            say(f"step {step + 1} of {steps}")

    prompt = train_prompt(model, optimizer, batches(), loss=task.loss, public=public)
    heldout = task.examples(data.heldout)
    if heldout:
        for name_of, value in task.scores(model.eval(), heldout, budget, torch.float32).items():
            say(f"{name_of} {value:.3f} on {len(heldout)} held-out records")
    return add_prompt(to, name, prompt, origin)


def _declared(public: bool) -> None:
    if public is not True:
        raise PrivacyError(
            "A source prompt is trained without any noise: declare that all of its records are public (public=True, "
            "--public on the command line), or use none of them."
        )


def _order(count: int, generator: torch.Generator) -> Iterator[int]:
    """All numbers below ``count`` in random order, again and again."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
