"""dpft's layers under Opacus: ``import dpft.interop.opacus`` registers how their per-example gradients are computed.

    IA3Linear   dl_b = sum_t g_t * a_t                  a: what the vector scales
    PHM         one product of factors a parameter      see peft/kronecker.py

These hold parameters of their own. Everything else that a method trains is a stock layer: Linear, LayerNorm and
Embedding have Opacus' own samplers; GPT-2's Conv1D and Llama's RMSNorm go through its functorch, exactly and slowly. A
parameter that several modules share (Compacter's rule, a tied head) is right: Opacus adds up its uses before it clips.

Under ``opacus.PrivacyEngine`` (its modes hooks, functorch and ghost) train

    lora, adapter, compacter, ia3, bitfit, norms, head, last-k, full, tokens

wherever Opacus meets a trained module with the batch alone. The others raise: prompt, prefix, lst, attempt, dsee,
sparse-adapter and raft, and LoRA with ``pattern = "lock"``, use parameters outside of a module's own call, or lay them
out in buffers. So do

* a trained module that is called on anything but the batch, in the forward pass (opacus_guard.py, which the import
  installs): DeBERTa's query and key projections, which also run on its table of relative positions (lora, ia3, last-k
  and others there; Opacus alone would be half wrong in silence), tables of positions that are looked up once for all
  (``full`` on BERT and GPT-2, T5's relative bias). Freeze it, or choose other targets;
* a module that stands in several places of a model (none of dpft's do), when Opacus hooks it: it would count every use
  as often;
* eval mode, which ``attach`` leaves a model in: Opacus' hooks record nothing, and its backward pass raises. Call
  ``model.train()``.

:func:`check` compares every gradient with the one-example oracle and is the last word; call it before ``make_private``.
What the guard can't see and it can: a table looked up by as many positions as there happen to be examples.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dpft.interop.opacus_guard import check, install
from dpft.peft.ia3 import IA3Linear
from dpft.peft.kronecker import factor_forms
from dpft.peft.phm import PHM

__all__ = ["SAMPLERS", "check", "register"]

Samples = dict[nn.Parameter, Tensor]


def ia3_samples(layer: IA3Linear, activations: list[Tensor], backprops: Tensor) -> Samples:
    """l [n] -> [B, n]."""
    if not layer.ia3_l.requires_grad:
        return {}
    x, g = activations[0], backprops
    with torch.no_grad():
        if layer.side == "output":
            scaled = g * layer.base_layer(x)
        else:
            weight = cast(Tensor, layer.base_layer.weight)
            scaled = x * (g @ (weight if isinstance(layer.base_layer, nn.Linear) else weight.T))
    return {layer.ia3_l: _by_token(scaled).sum(dim=1)}


def phm_samples(layer: PHM, activations: list[Tensor], backprops: Tensor) -> Samples:
    """The rule [n,n,n], s [n, I/n], t [n, O/n] and the bias [O], each with the examples in front."""
    with torch.no_grad():
        x, g = _by_token(activations[0]), _by_token(backprops)
        forms, _ = factor_forms(x, g, layer.rule, layer.s, layer.t)
        found = zip((layer.rule, layer.s, layer.t, layer.bias), forms, strict=True)
        return {p: form.dense().to(g.dtype) for p, form in found if p is not None and p.requires_grad}


SAMPLERS: dict[type[nn.Module], Callable[[Any, list[Tensor], Tensor], Samples]] = {
    IA3Linear: ia3_samples,
    PHM: phm_samples,
}


def register() -> None:
    """Make Opacus use :data:`SAMPLERS`, and guard what it hooks. Calling it again changes nothing."""
    opacus: Any = importlib.import_module("opacus.grad_sample")  # untyped
    for layer, sampler in SAMPLERS.items():
        opacus.register_grad_sampler(layer)(sampler)
    install(opacus.GradSampleHooks)


def _by_token(x: Tensor) -> Tensor:
    """[B, ..., N] -> [B, T, N]."""
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


register()
