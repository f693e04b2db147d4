"""Eight bits a weight: bounded error, zeros that stay zero, and tensors that plain transformers takes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from dpft.quantise import FILE, SCALE, quantised, quantised_state, save_int8


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), scale=st.sampled_from([1e-42, 1e-30, 1e-3, 1.0, 1e30]), dim=st.integers(0, 1))
def test_an_entry_is_off_by_at_most_half_a_scale(seed: int, scale: float, dim: int) -> None:
    """By hand in float64, over magnitudes that float32 barely holds."""
    g = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(5, 7, generator=g) * torch.logspace(-3, 0, 5)[:, None]
    weight[torch.rand(5, 7, generator=g) < 0.5] = 0.0
    weight[2] = 0.0
    q, s = quantised(weight, dim)
    assert q.dtype == torch.int8
    assert s.shape == ((5, 1) if dim == 1 else (1, 7))
    error = (weight.double() - q.double() * s.double()).abs()
    assert (error <= s.double() / 2 * (1 + 1e-5)).all()
    assert not q[weight == 0].any()
    if scale > 1e-40:
        largest = weight.abs().amax(dim=dim)
        assert (q.abs().amax(dim=dim)[largest > 0] == 127).all()  # the whole range is used


@pytest.mark.parametrize("family", ["gpt2", "t5", "vit", "llama", "modernbert"])
def test_other_families_load_by_transformers_alone(family: str, tiny_encoder: Any, tmp_path: Path) -> None:
    """Conv1D keeps its outputs second, T5 ties its tables: each is stored once."""
    model = tiny_encoder(family).float()
    (tmp_path / "m").mkdir()
    save_int8(model, tmp_path / "m")
    stored = load_file(tmp_path / "m" / FILE)
    weights = {n: t * stored[n + SCALE] if t.dtype == torch.int8 else t for n, t in stored.items() if SCALE not in n}
    empty = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path / "m"))
    loaded, info = type(empty).from_pretrained(None, config=empty.config, state_dict=weights, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, expected in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert (found - expected).abs().max() <= expected.abs().max() / 253, name
    if family == "gpt2":
        layer = next(m for m in model.modules() if isinstance(m, Conv1D))
        name = next(n for n, m in model.named_modules() if m is layer)
        assert stored[f"{name}.weight{SCALE}"].shape == (1, layer.nf)


def test_a_tied_head_is_not_quantised(task: Any) -> None:
    """It is the embedding too, which stays as it is."""
    state = quantised_state(task("gpt2").model.float())
    assert state["transformer.wte.weight"].dtype == torch.float32
    assert "lm_head.weight" not in state
