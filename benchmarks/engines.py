"""The recipe's model under a real private engine, for benchmarks that look inside its steps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from common import Records
from whole_runs import compute_of

from dpft.engine.engine import PrivateEngine
from dpft.engine.plan import plan
from dpft.models.held import hold_frozen
from dpft.models.losses import classification_loss
from dpft.models.precision import attention_for
from dpft.models.recompute import recompute
from dpft.run import build_model
from dpft.schedule import build_optimizer


@contextmanager
def private_engine(records: Records, *, batch: int, sample_rate: float, steps: int) -> Iterator[PrivateEngine]:
    """One for so many steps at noise multiplier 1; its ledger is thrown away."""
    recipe, compute = records.recipe, compute_of(records.recipe)
    model, _ = build_model(recipe, records.source, attention_for(compute, torch.device("cpu")))
    hold_frozen(model, compute)
    if recipe.train.recompute:
        recompute(model.encoder)
    made = plan(
        delta=recipe.privacy.delta,
        sample_rate=sample_rate,
        expected_batch=batch,
        noise_multiplier=1.0,
        steps=steps,
        clip=recipe.privacy.clip,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        PrivateEngine(
            model,
            build_optimizer(recipe.optimizer, model, model.head),
            made,
            loss=classification_loss,
            ledger=Path(folder) / "ledger.jsonl",
            token_budget=recipe.train.token_budget,
            compute=compute,
        ) as engine,
    ):
        yield engine
