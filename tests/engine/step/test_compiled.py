"""A7: a model that torch compiled trains as it does without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from dpft.engine.keystream import InsecureSeededWords


def updates(bench: Any, *, compiled: bool) -> torch.Tensor:
    torch.manual_seed(2)
    model = bench.Branches()
    if compiled:
        model.compile(backend="aot_eager")  # all but the code generator, which needs a C++ compiler
    engine = bench.engine(model, bench.plan(steps=2), words=InsecureSeededWords(3))
    return bench.train(engine, bench.gated(12, 1.0, 1.0))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_a_compiled_model_trains_the_same(bench: Any) -> None:
    """Preflight and checks included."""
    plain = updates(bench, compiled=False)
    torch._dynamo.reset()
    counters.clear()
    torch.testing.assert_close(updates(bench, compiled=True), plain, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
