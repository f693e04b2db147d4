"""A tiny BERT of three blocks, records of unequal lengths, and the task that a run would make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dpft
from dpft.data import Collator
from dpft.engine.keystream import InsecureSeededWords
from dpft.engine.microbatch import token_length
from dpft.models.classifier import TextClassifier
from dpft.models.losses import classification_loss
from dpft.peft import attach
from dpft.peft.around import Around
from dpft.peft.method import Method
from dpft.peft.registry import method_from
from dpft.per_sample.capture import trainable

WIDTH, VOCABULARY, LAYERS = 16, 23, 3


class Ladder(Around):
    """A side network as small as can be: it reads the embedding and two blocks, and its sum replaces the output."""

    def __init__(self, reads: tuple[str, ...] = ("embeddings", "encoder.layer.0", "encoder.layer.2")) -> None:
        super().__init__()
        self.reads = reads
        self.sides = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in reads)
        self.read: dict[str, torch.Tensor] = {}

    def put(self, model: nn.Module, name: str) -> None:
        super().put(model, name)
        for place in self.reads:
            model.get_submodule(place).register_forward_hook(
                lambda _m, _a, out, place=place: self.read.__setitem__(place, out)
            )

    def after(self, model: nn.Module, arguments: Any, output: Any) -> Any:
        sides = zip(self.sides, self.reads, strict=True)
        output["last_hidden_state"] = sum(side(self.read[place]).tanh() for side, place in sides)
        return output


class Rungs(Method):
    """Puts a :class:`Ladder` around the encoder; the test's stand-in for ladder side-tuning."""

    name, what, merges = "rungs", "a test's ladder", False

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        part = Ladder()
        part.put(model.encoder, "ladder")  # type: ignore[arg-type]
        return list(part.parameters())


class Letters:
    """Records are their own examples."""

    collate = Collator(0, "right", ("input_ids", "token_type_ids", "attention_mask"))

    def __init__(self, records: list[Any] | None = None, side: Any = "right") -> None:
        self.records = records if records is not None else examples(30)
        self.collate = Collator(0, side, ("input_ids", "token_type_ids", "attention_mask"))
        self.labels = self.collate.labels

    def load(self) -> Any:
        raise AssertionError("a test hands the records over itself")

    def examples(self, records: Any, folder: Path | None = None) -> list[Any]:
        return list(records)

    def length(self, example: Any) -> int:
        return token_length(example)

    def synthetic(self) -> dict[str, Any]:
        return self.collate(examples(4, seed=9))

    def inputs(self) -> dict[str, Any]:
        return {}


def examples(count: int, seed: int = 1, longest: int = 9) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        {"input_ids": rng.integers(3, VOCABULARY, rng.integers(1, longest)).astype(np.int32), "label": int(i % 2)}
        for i in range(count)
    ]


METHODS: dict[str, Method] = {
    "head": method_from({"name": "head"}),
    "last-k": method_from({"name": "last-k"}),
    "rungs": Rungs(),
    "lora": method_from({"name": "lora", "rank": 2}),
    "lora, last block": method_from({"name": "lora", "rank": 2, "targets": ["all-linear"], "blocks": 1}),
}


@pytest.fixture
def attached() -> Callable[..., TextClassifier]:
    """``attached(name)``: the same weights every time, float32, none of what trains at zero."""
    from transformers import BertConfig, BertModel

    def make(name: str, seed: int = 0, **config: Any) -> TextClassifier:
        torch.manual_seed(seed)
        body = BertModel(
            BertConfig(
                vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
                intermediate_size=24, max_position_embeddings=16, attn_implementation="eager", **config,
            )
        )  # fmt: skip
        model = attach(TextClassifier(body, 2, "mean", None), METHODS[name], train=("head",))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape))
        return model

    return make


@pytest.fixture
def train() -> Callable[..., dict[str, torch.Tensor]]:
    """``train(model, task, records, ledger)``: the trained weights after some steps, noised alike every time."""

    def go(
        model: Any, task: Any, records: list[Any], ledger: Path, *, loss: Any = classification_loss, steps: int = 8
    ) -> dict[str, torch.Tensor]:
        plan = dpft.plan(delta=1e-5, sample_rate=0.4, expected_batch=12, noise_multiplier=0.5, steps=steps, clip=1.0)
        optimizer = torch.optim.SGD(trainable(model).values(), lr=0.2)
        words = InsecureSeededWords(3)
        with dpft.PrivateEngine(
            model, optimizer, plan, loss=loss, ledger=ledger, token_budget=40, words=words
        ) as engine:
            engine.preflight(task.synthetic())
            for batch in engine.batches(task.examples(records), task.collate, length=task.length):
                engine.step(batch)
        return {name: p.detach().clone() for name, p in trainable(model).items()}

    return go


@pytest.fixture
def gap_and_way() -> Callable[..., tuple[float, float]]:
    """How far two trainings from the same start ended from each other, and how far the first one went."""

    def measure(start: Any, plain: Any, found: Any) -> tuple[float, float]:
        gap, way = (torch.stack([(plain[n] - other[n]).norm() for n in plain]).norm() for other in (found, start))
        return float(gap), float(way)

    return measure


class Calls:
    """Counts the forward passes of the attention in each block."""

    def __init__(self, model: TextClassifier) -> None:
        self.blocks = [0] * LAYERS
        for i, block in enumerate(model.encoder.encoder.layer):  # type: ignore[union-attr, arg-type]
            block.attention.register_forward_pre_hook(lambda *_, i=i: self._count(i))

    def _count(self, i: int) -> None:
        self.blocks[i] += 1


@pytest.fixture
def calls() -> type[Calls]:
    return Calls


@pytest.fixture
def letters() -> type[Letters]:
    return Letters


@pytest.fixture
def records() -> Callable[..., list[Any]]:
    return examples
