"""The steps that are compared. Each variant trains a model of its own on one fixed logical batch.

All begin at the same parameters, see the same records, and hand the optimizer a mean gradient; ``step`` is
one whole step from a list of records to the update, collation and noise included. The records are drawn with
probability 1, so that samplers and ledgers run as in training and yet the batch stays the same.
"""

from __future__ import annotations

import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpft.config import Recipe
from dpft.data import Collator
from dpft.engine.engine import PrivateEngine
from dpft.engine.microbatch import cut, narrow_on, token_length
from dpft.engine.noise import GriddedGaussian
from dpft.engine.plan import plan
from dpft.environment import set_defaults
from dpft.errors import PrivacyError
from dpft.models.classifier import TextClassifier
from dpft.models.held import hold_frozen
from dpft.models.losses import classification_loss
from dpft.models.precision import attention_for, products_in
from dpft.models.source import ModelSource
from dpft.per_sample.capture import trainable
from dpft.run import build_model
from dpft.schedule import build_optimizer

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """One logical batch and how it is worked off.

    ``token_budget`` cuts length-sorted micro-batches; ``physical`` is the number of records in a micro-batch
    in the order of a data loader; ``compute`` is the type of the matrix products; ``clip`` bounds the norm of
    one record's gradient; ``steps`` is how many steps a ledger allows. ``recompute`` keeps no activations inside
    blocks (activation checkpointing). ``noise`` = False leaves the noise out and ``plain_sgd`` takes SGD at rate 1,
    both for the comparison of gradients."""

    recipe: Recipe
    source: ModelSource
    examples: list[Any]
    collate: Collator
    physical: int
    token_budget: int
    compute: torch.dtype
    clip: float
    recompute: bool = False
    noise: bool = True
    plain_sgd: bool = False
    steps: int = 2

    @property
    def noise_multiplier(self) -> float:
        return 1.0  # what a draw costs does not depend on it

    def build(self) -> TextClassifier:
        """The recipe's model with its method, and every trained tensor away from zero.

        At a zero head no gradient passes to what lies below, and a comparison would prove nothing."""
        model, _ = build_model(self.recipe, self.source, attention_for(self.compute, _CPU))
        if self.recompute:
            without_dropout(model)
            model.encoder.activation_checkpointing_enable({"use_reentrant": False})
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
        return model

    def optimizer(self, model: TextClassifier) -> torch.optim.Optimizer:
        if self.plain_sgd:
            return torch.optim.SGD(trainable(model).values(), lr=1.0)
        return build_optimizer(self.recipe.optimizer, model, model.head)

    def autocast(self) -> torch.autocast:
        return products_in(self.compute, _CPU)


class Variant(ABC):
    """A way to make a step; ``model`` is trained in place."""

    name: str

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = self.build()
        self.optimizer = task.optimizer(self.model)

    def build(self) -> TextClassifier:
        return self.task.build()

    @abstractmethod
    def step(self) -> None:
        """One whole step on the logical batch."""

    def bound(self) -> float:
        """What the norm of one record's gradient is really held to."""
        return self.task.clip

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of files."""


class Ordinary(Variant):
    """Without privacy, on the same length-sorted micro-batches as dpft."""

    name = "ordinary"

    def pieces(self) -> Iterator[list[Any]]:
        examples = self.task.examples
        lengths = [token_length(e) for e in examples]
        for piece in cut(range(len(examples)), lengths, self.task.token_budget, narrow=narrow_on("cpu")):
            yield [examples[i] for i in piece]

    def step(self) -> None:
        self.optimizer.zero_grad()
        for piece in self.pieces():
            batch = self.task.collate(piece)
            with self.task.autocast():
                losses = classification_loss(self.model, batch)
            (losses.sum() / len(self.task.examples)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class OrdinaryLoader(Ordinary):
    """Without privacy, on micro-batches as a data loader makes them: in the records' own order."""

    name = "ordinary, loader's batches"

    def pieces(self) -> Iterator[list[Any]]:
        examples, size = self.task.examples, self.task.physical
        yield from (examples[i : i + size] for i in range(0, len(examples), size))


class Dpft(Variant):
    """dpft's engine as a user drives it, ledger and checks included."""

    name = "dpft"

    def build(self) -> TextClassifier:
        """As a run does: frozen matrices in the type that they are multiplied in."""
        model = super().build()
        hold_frozen(model, self.task.compute)
        return model

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        size = len(task.examples)
        promised = plan(
            delta=0.1 / size,
            expected_batch=size,
            examples=size,
            clip=task.clip,
            noise_multiplier=task.noise_multiplier,
            steps=task.steps,
        )
        self._folder = tempfile.TemporaryDirectory()
        self._engine = PrivateEngine(
            self.model,
            self.optimizer,
            promised,
            loss=classification_loss,
            ledger=Path(self._folder.name) / "ledger.jsonl",
            token_budget=task.token_budget,
            compute=task.compute,
            words=None if task.noise else _ZeroNoise(),
        )
        self._batches = self._engine.batches(task.examples, task.collate)

    def step(self) -> None:
        try:
            self._engine.step(next(self._batches))
        except PrivacyError:
            # Without noise a gradient that is zero in exact arithmetic (a key's bias) moves nothing, which the engine
            # refuses after the update; the comparison then sees what did move.
            if self.task.noise:
                raise

    def bound(self) -> float:
        """A little below the clip: the engine keeps room for rounding (see ``GriddedGaussian``)."""
        size = sum(p.numel() for p in trainable(self.model).values())
        return GriddedGaussian(self.task.clip, self.task.noise_multiplier, size, self.task.compute).bound

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]
        self._engine.close()
        self._folder.cleanup()


class _ZeroNoise:
    """Words with all bits set: the uniform 1, at which the normal drawn by Box-Muller is 0."""

    name, private = "no noise: for the comparison of gradients alone", False

    def words(self, n: int) -> Tensor:
        return torch.full((n,), -1, dtype=torch.int64)


def without_dropout(model: nn.Module) -> None:
    """Train mode, which Opacus demands, and yet the function of eval mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def quiet() -> None:
    """The environment that the command line sets; and silence what Opacus says about its insecure generator and about
    hooks on inputs without gradient."""
    set_defaults()
    for message in ("Secure RNG turned off", "Full backward hook", "Optimal order is the largest"):
        warnings.filterwarnings("ignore", message=message)
