"""Prefix tuning: trained keys and values beside every attention's own (Li and Liang 2021, arXiv 2101.00190).

    attention(q, [k'_1 .. k'_P, k], [v'_1 .. v'_P, v])         k', v': [P, heads of keys and values x width of a head]

In every attention of every block, cross-attention included: one parameter [2, P, width] each, L x 2 x P x width numbers
in all. The published MLP that makes these from a smaller table steadies their training and is thrown away after it; it
is left out here, since under DP-SGD each of its weights would get noise, too.

No position is taken: tokens count as without a prefix, and rotary positions don't turn a prefix's keys. A new key takes
its share of every softmax, so that no start is the identity. Per example: each gets copies of both, [B, 2, P, width].

It works through transformers' AttentionInterface. An attention module asks its configuration for the name of the
function that computes it; here it gets a configuration of its own, a copy with another name, and so no other
model, not even one that shares the configuration, sees any of it. The masks are still made for the function that the
model was set to, to which this one hands on ("eager" or "sdpa").
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.around import Around
from dpft.peft.families import at, backbone, family_of
from dpft.peft.lora import linear_shape
from dpft.peft.method import Method, expect_whole, placed
from dpft.peft.prompt import expect_above_zero
from dpft.per_sample import expand

NAME = "prefix"
INTERFACE = "dpft_prefix"
_KNOWN = ("eager", "sdpa")


@dataclass(frozen=True)
class PrefixTuning(Method):
    """``length`` is P; keys and values start at numbers of standard deviation ``init_std`` (at zero all P would stay
    equal)."""

    name: ClassVar[str] = "prefix"
    what: ClassVar[str] = "keys and values in front of every attention (Li and Liang 2021)"
    merges: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("interface",)

    length: int = 20
    init_std: float = 0.02

    def __post_init__(self) -> None:
        expect_whole("length", self.length)
        expect_above_zero("init_std", self.init_std)

    @property
    def identity(self) -> bool:
        return False

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """A part in every attention module."""
        host = backbone(model)
        family = family_of(host)
        if not family.interface:
            raise InputError(
                f"Expected a model whose attention takes further keys and values; that of {family.model_type!r} is "
                'computed in its own way. Use method.name="prompt" instead.'
            )
        keys = [(host.get_submodule(name.rpartition(".")[0]), key) for name, key in at(host, "key")]
        for attention, _ in keys:
            _check(attention)  # before anything is changed
        _interface().register(INTERFACE, attend)
        parts = []
        for attention, key in keys:
            width = linear_shape(key)[1] // family.fused
            initial = torch.empty(2, self.length, width).normal_(0, self.init_std, generator=generator)
            part = Prefix(placed(initial, key))
            part.put(attention, NAME)
            parts.append(part)
        return [part.prefix for part in parts]


class Prefix(Around):
    """Keys and values [2, P, heads x width of a head] of one attention module."""

    def __init__(self, prefix: nn.Parameter) -> None:
        super().__init__()
        self.prefix = prefix

    def put(self, model: nn.Module, name: str) -> None:
        """Into an attention module, with a configuration of its own."""
        model.add_module(name, self)
        self._config: Any = model.config
        own: Any = copy.copy(self._config)
        own._attn_implementation = INTERFACE
        model.config = own

    def take_out(self, model: nn.Module, name: str) -> None:
        model.config = self._config
        delattr(model, name)

    @property
    def implementation(self) -> str:
        """What the model is set to now, and makes its masks for."""
        return _checked(self._config)

    def joined(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, T, width] with the prefix in front: [B, heads, P+T, width]."""
        B, heads, _, width = key.shape
        own = expand(self.prefix, B).reshape(B, 2, -1, heads, width).transpose(2, 3)  # [B, 2, heads, P, width]
        return torch.cat([own[:, 0].to(key.dtype), key], dim=2), torch.cat([own[:, 1].to(value.dtype), value], dim=2)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """The attention function of a module with a prefix: what it had, on more keys and values."""
    part: Any = module.get_submodule(NAME)
    compute = _function(module, part.implementation)
    if not part.enabled:
        return compute(module, query, key, value, attention_mask, **kwargs)
    P = part.prefix.shape[1]
    if attention_mask is None and query.shape[2] > 1 and _is_causal(module, kwargs):
        # "sdpa" has no mask where it can leave causality to its kernel, which would mask the prefix as well.
        square = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = square.tril()[None, None]
    if attention_mask is not None:
        attention_mask = F.pad(attention_mask, (P, 0), value=attention_mask.dtype == torch.bool)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = F.pad(kwargs["position_bias"], (P, 0))
    return compute(module, query, *part.joined(key, value), attention_mask, **kwargs)


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    said = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _check(attention: nn.Module) -> None:
    """Raise :class:`InputError` for an attention that can't be extended."""
    if getattr(attention, "reorder_and_upcast_attn", False):
        raise InputError("Expected a configuration without reorder_and_upcast_attn: a prefix knows no such attention.")
    _function(attention, _checked(attention.config))


def _checked(config: Any) -> str:
    name = str(config._attn_implementation)
    if name not in _KNOWN:
        raise InputError(
            f'Expected a model with attention "eager" or "sdpa" for a prefix, found {name!r}; load it with '
            'attn_implementation="sdpa".'
        )
    return name


def _interface() -> Any:
    """transformers' table of attention functions."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # not before a model is at hand: it takes a second

    return ALL_ATTENTION_FUNCTIONS


def _function(attention: nn.Module, name: str) -> Callable[..., Any]:
    """Every modelling file has an "eager" of its own."""
    if name != "eager":
        return _interface()[name]  # type: ignore[no-any-return]
    homes = (sys.modules[kind.__module__] for kind in type(attention).__mro__)
    found = next((f for home in homes if (f := getattr(home, "eager_attention_forward", None))), None)
    if found is None:
        raise InputError(f"Expected {type(attention).__name__} to have an eager attention function; load with 'sdpa'.")
    return found  # type: ignore[no-any-return]
