"""A7: a model that torch compiled trains as it does without."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from dpft.engine.keystream import InsecureSeededWords
from dpft.errors import OneAtATime


def with_product(model: Any) -> Any:
    """``b``'s weight as a product of two factors, which no example enters: all share it."""

    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (torch.nn.Parameter(0.3 * torch.randn(shape)) for shape in ((30, 3), (3, 40)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.left @ self.right)

    model.b = Product()
    return model


def updates(bench: Any, *, product: bool, compiled: bool) -> torch.Tensor:
    torch.manual_seed(2)
    model = with_product(bench.Branches()) if product else bench.Branches()
    if compiled:
        model.compile(backend="aot_eager")  # all but the code generator, which needs a C++ compiler
    engine = bench.engine(model, bench.plan(steps=2), words=InsecureSeededWords(3))
    return bench.train(engine, bench.gated(12, 1.0, 1.0))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize("product", [False, True])
def test_a_compiled_model_trains_the_same(bench: Any, product: bool) -> None:
    """Preflight and checks included; one example at a time, and said so, where dynamo can't take what all share."""
    plain = updates(bench, product=product, compiled=False)
    torch._dynamo.reset()
    counters.clear()
    with pytest.warns(OneAtATime, match="Dynamo") if product else nullcontext():
        compiled = updates(bench, product=product, compiled=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
