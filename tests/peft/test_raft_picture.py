"""The picture of learnt activation functions: what it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dpft.errors import InputError
from dpft.peft import RAFT, LoRA, attach
from dpft.peft.raft import Rational
from dpft.report.activations import activations_svg, learned_functions


def test_each_layer_is_drawn_as_it_is(tiny_encoder: Callable[..., Any]) -> None:
    model = attach(tiny_encoder("bert"), RAFT(range=4.0))
    layers = [m for m in model.modules() if isinstance(m, Rational)]
    with torch.no_grad():
        layers[1].numerator[0] += 8.0 * layers[1].scales[0][0]  # a_0, divided by Q
    panels = learned_functions(model).axes
    assert len(panels) == len(layers) == 3
    for axes, layer in zip(panels, layers, strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        x = torch.as_tensor(lines["learnt"].get_xdata(), dtype=torch.float64)
        assert (float(x.min()), float(x.max())) == (-4.0, 4.0)
        for label, function in (("before", layer.base_layer), ("learnt", layer)):
            with torch.no_grad():
                expected = function(x[None])[0]
            torch.testing.assert_close(torch.as_tensor(lines[label].get_ydata()).double(), expected, atol=1e-5, rtol=0)
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[0].startswith("encoder.layer.0")
    assert titles[2].startswith("pooler")
    assert float(titles[1].split()[-2]) > 1 > float(titles[0].split()[-2])


def test_a_model_without_them_has_no_picture(tiny_encoder: Callable[..., Any]) -> None:
    model = attach(tiny_encoder("bert"), LoRA(rank=2))
    assert activations_svg(model) is None
    with pytest.raises(InputError, match="RAFT"):
        learned_functions(model)
